"""Search in an in-memory corpus, with mteb's search protocol.

mteb's own search prepares and encodes the corpus again for every subset; here all languages share one. mteb still
computes the metrics.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from train.evaluation.mteb_adapter import MtebAdapter, model_meta

if TYPE_CHECKING:
    from mteb.models.model_meta import ModelMeta

# Bound of queries x documents scored at once: 256 MB in float32.
MAX_SCORES = 2**26


class LocalSearch(ABC):
    """mteb's search protocol for plain texts (no titles, instructions or reranking)."""

    def __init__(self) -> None:
        self._corpus: Any = None
        self._ids: list[str] = []

    @property
    def mteb_model_meta(self) -> ModelMeta:
        return model_meta(self)

    def index(self, corpus: Any, **_: Any) -> None:
        """Index the corpus, unless the previous call had the same one."""
        if corpus is not self._corpus:
            columns = corpus[:]  # as lists; a lazy column of `datasets` is slow to iterate
            self._corpus, self._ids = corpus, columns["id"]
            self.set_corpus(columns["text"])

    def search(self, queries: Any, *, top_k: int, **_: Any) -> dict[str, dict[str, float]]:
        """{query id: {document id: score}} of each query's `top_k` best documents."""
        columns = queries[:]
        indices, scores = self.rank(columns["text"], min(top_k, len(self._ids)))
        return {
            query: {self._ids[index]: score for index, score in zip(row_indices, row_scores, strict=True)}
            for query, row_indices, row_scores in zip(columns["id"], indices.tolist(), scores.tolist(), strict=True)
        }

    @abstractmethod
    def set_corpus(self, texts: Sequence[str]) -> None:
        """Index the documents."""

    @abstractmethod
    def rank(self, queries: Sequence[str], top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Document indices [n, top_k] and scores [n, top_k], best first."""


class EncoderSearch(LocalSearch):
    """Exact search by cosine similarity."""

    def __init__(self, encoder: MtebAdapter) -> None:
        super().__init__()
        self.encoder = encoder
        self._documents = np.empty((0, 0), np.float32)

    def set_corpus(self, texts: Sequence[str]) -> None:
        self._documents = self.encoder.encode_texts(texts)

    def rank(self, queries: Sequence[str], top_k: int) -> tuple[np.ndarray, np.ndarray]:
        vectors = self.encoder.encode_texts(queries)
        step = max(1, MAX_SCORES // len(self._documents))
        best = [
            self.encoder.similarity(vectors[start : start + step], self._documents).topk(top_k, dim=1)
            for start in range(0, len(vectors), step)
        ]
        indices, scores = ([getattr(part, name).cpu().numpy() for part in best] for name in ("indices", "values"))
        return np.concatenate(indices), np.concatenate(scores)
