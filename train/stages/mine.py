"""Mining: for each pair a pool of hard negatives, the nearest texts that are not right answers, hardest first."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from train.pairs import PairTable
from train.recipe import MineRecipe

Encode = Callable[[Sequence[str]], NDArray[np.float32]]

# Queries searched at a time; bounds the memory of the results.
SEARCH_ROWS = 4096


def mine(
    table: PairTable, encode: Encode, recipe: MineRecipe, *, at_least: int, seed: int, label: str = "mine"
) -> NDArray[np.int64]:
    """Pools of hard negatives.

    Candidates are the positives of all pairs. Left out: every text of the pair's own group (its positives, their
    duplicates, answers to the same query), and texts that score above max_score_ratio of the pair's own positive,
    which are more likely unmarked right answers than negatives. Negatives that came with the data stand first. A pool
    of fewer than `at_least` is filled up with random texts of other groups.

    Returns:
        [n, pool_size] numbers of texts, -1 where a pool is shorter.

    Raises:
        ValueError: if there are too few texts of other groups to fill a pool.
    """
    import faiss

    used = np.unique(np.concatenate([table.queries, table.positives]))
    embedded = encode([table.texts[i] for i in used])
    vectors = np.zeros((len(table.texts), embedded.shape[1]), dtype=np.float32)
    vectors[used] = embedded / np.maximum(np.linalg.norm(embedded, axis=1, keepdims=True), 1e-12)

    candidates = np.unique(table.positives)
    index = faiss.index_factory(vectors.shape[1], recipe.index, faiss.METRIC_INNER_PRODUCT)
    if faiss.get_num_gpus() > 0:
        index = faiss.index_cpu_to_all_gpus(index)
    index.train(vectors[candidates])
    index.add(vectors[candidates])

    pools = np.full((len(table), max(recipe.pool_size, at_least)), -1, dtype=np.int64)
    neighbours = min(recipe.search, len(candidates))
    rng = np.random.default_rng((seed, 5))
    for start in tqdm(range(0, len(table), SEARCH_ROWS), desc=f"{label:>11}", unit="block", dynamic_ncols=True):
        rows = np.arange(start, min(start + SEARCH_ROWS, len(table)))
        scores, found = index.search(vectors[table.queries[rows]], neighbours)
        texts = np.where(found >= 0, candidates[found], -1)
        own = (vectors[table.queries[rows]] * vectors[table.positives[rows]]).sum(1)
        groups = table.groups[table.queries[rows]]
        good = (texts >= 0) & (table.groups[texts] != groups[:, None])
        good &= scores <= recipe.max_score_ratio * own[:, None]
        for i, row in enumerate(rows):
            given = table.negatives[row][table.groups[table.negatives[row]] != groups[i]]
            pool = list(dict.fromkeys([*given.tolist(), *texts[i, good[i]].tolist()]))[: pools.shape[1]]
            if len(pool) < at_least:
                pool += _random_others(table, candidates, int(groups[i]), set(pool), at_least - len(pool), rng)
            pools[row, : len(pool)] = pool
    return pools


def _random_others(
    table: PairTable,
    candidates: NDArray[np.int64],
    group: int,
    taken: set[int],
    count: int,
    rng: np.random.Generator,
) -> list[int]:
    free = [int(c) for c in candidates[table.groups[candidates] != group] if int(c) not in taken]
    if len(free) < count:
        raise ValueError(
            f"supervised.num_negatives: a pair has only {len(free) + len(taken)} possible negatives among "
            f"{len(candidates)} texts; take fewer, or more data"
        )
    return [int(i) for i in rng.choice(free, size=count, replace=False)]
