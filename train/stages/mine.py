"""Mining: a pool of hard negatives per pair, the nearest texts that are not right answers, hardest first."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from train.pairs import PairTable
from train.recipe import MineRecipe

Encode = Callable[[Sequence[str]], NDArray[np.float32]]

# Queries per search; bounds the memory of the results.
SEARCH_ROWS = 4096


def mine(table: PairTable, encode: Encode, recipe: MineRecipe, *, at_least: int, seed: int) -> NDArray[np.int64]:
    """Pools of hard negatives.

    Candidates are the positives of all pairs, except the texts of the pair's own group (its positives, their
    duplicates, answers to the same query) and texts that score above max_score_ratio times the pair's positive, which
    are likely unlabelled right answers. Negatives from the data come first. Pools with fewer than `at_least` texts are
    filled up with random texts of other groups.

    Returns:
        [n, pool_size] indices into table.texts, padded with -1.

    Raises:
        ValueError: too few texts of other groups to fill a pool.
    """
    vectors = _unit_vectors(table, encode)
    candidates = np.unique(table.positives)
    index = _build_index(recipe.index, vectors[candidates])
    pools = np.full((len(table), max(recipe.pool_size, at_least)), -1, dtype=np.int64)
    neighbors = min(recipe.search, len(candidates))
    rng = np.random.default_rng((seed, 5))
    for start in tqdm(range(0, len(table), SEARCH_ROWS), desc=f"{'mine':>11}", unit="block", dynamic_ncols=True):
        rows = np.arange(start, min(start + SEARCH_ROWS, len(table)))
        queries, positives = vectors[table.queries[rows]], vectors[table.positives[rows]]
        scores, found = index.search(queries, neighbors)
        texts = np.where(found >= 0, candidates[found], -1)
        positive_scores = (queries * positives).sum(1)
        groups = table.groups[table.queries[rows]]
        accepted = (texts >= 0) & (table.groups[texts] != groups[:, None])
        accepted &= scores <= recipe.max_score_ratio * positive_scores[:, None]
        for i, row in enumerate(rows):
            from_data = table.negatives[row][table.groups[table.negatives[row]] != groups[i]]
            pool = list(dict.fromkeys([*from_data.tolist(), *texts[i, accepted[i]].tolist()]))[: pools.shape[1]]
            if len(pool) < at_least:
                others = candidates[table.groups[candidates] != groups[i]]
                pool += _random_texts(others, set(pool), at_least - len(pool), rng)
            pools[row, : len(pool)] = pool
    return pools


def _unit_vectors(table: PairTable, encode: Encode) -> NDArray[np.float32]:
    """Normalized vectors [m, hidden] of the table's queries and positives; zeros for its other texts."""
    used = np.unique(np.concatenate([table.queries, table.positives]))
    embedded = encode([table.texts[i] for i in used])
    vectors = np.zeros((len(table.texts), embedded.shape[1]), dtype=np.float32)
    vectors[used] = embedded / np.maximum(np.linalg.norm(embedded, axis=1, keepdims=True), 1e-12)
    return vectors


def _build_index(description: str, vectors: NDArray[np.float32]) -> Any:
    """A faiss index for the inner product."""
    import faiss

    index = faiss.index_factory(vectors.shape[1], description, faiss.METRIC_INNER_PRODUCT)
    if faiss.get_num_gpus() > 0:
        index = faiss.index_cpu_to_all_gpus(index)
    index.train(vectors)
    index.add(vectors)
    return index


def _random_texts(others: NDArray[np.int64], used: set[int], count: int, rng: np.random.Generator) -> list[int]:
    """`count` random texts of `others` that are not in `used`."""
    free = [text for text in others.tolist() if text not in used]
    if len(free) < count:
        raise ValueError(
            f"supervised.num_negatives: a pair has only {len(free) + len(used)} possible negatives, "
            f"{count + len(used)} needed; lower num_negatives or add data"
        )
    return [int(i) for i in rng.choice(free, size=count, replace=False)]
