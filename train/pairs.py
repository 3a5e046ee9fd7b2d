"""Pairs as indices: each distinct text once, grouped into texts that must not be each other's negatives."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train.data.rows import Pair


@dataclass(frozen=True)
class PairTable:
    """n pairs over m distinct texts."""

    texts: list[str]
    queries: NDArray[np.int64]  # [n] indices into texts
    positives: NDArray[np.int64]  # [n]
    negatives: list[NDArray[np.int64]]  # [n][*] the hard negatives of the rows
    groups: NDArray[np.int64]  # [m]; texts connected through pairs have the same group
    languages: list[str]  # [n] of the queries

    def __len__(self) -> int:
        return len(self.queries)

    @staticmethod
    def of(rows: Sequence[Pair]) -> "PairTable":
        """Index the rows; texts that differ only in surrounding white space are the same text."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        index: dict[str, int] = {}

        def index_of(text: str) -> int:
            return index.setdefault(text.strip(), len(index))

        queries = np.array([index_of(row.query) for row in rows], dtype=np.int64)
        positives = np.array([index_of(row.positive) for row in rows], dtype=np.int64)
        negatives = [np.array([index_of(t) for t in row.negatives], dtype=np.int64) for row in rows]
        # A query may have several positives (sections with the same heading) and a positive several queries (a message
        # in several languages). The connected components are the groups.
        links = coo_matrix((np.ones(len(rows)), (queries, positives)), shape=(len(index), len(index)))
        _, groups = connected_components(links, directed=False)
        return PairTable(
            list(index), queries, positives, negatives, groups.astype(np.int64), [row.language for row in rows]
        )

    def only(self, keep: NDArray[np.bool_]) -> "PairTable":
        """The pairs where `keep` [n] is true, with the same texts and groups."""
        kept = np.flatnonzero(keep)
        return PairTable(
            self.texts,
            self.queries[kept],
            self.positives[kept],
            [self.negatives[i] for i in kept],
            self.groups,
            [self.languages[i] for i in kept],
        )
