"""What a backend of InfoNCE is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Queries and candidates, checked; losses are sums over the queries here / total.

    A backend has three functions of it. `sweep` returns (losses [dims], gradients of queries, positives, shared,
    private and temperature; empty where there is nothing to differentiate or none are asked for). Where one process
    never sees all candidates at once, `statistics` of each part comes first and `gradients` then; see _ring.py.
    """

    queries: Tensor  # [N, D]
    positives: Tensor  # [P, D], query i's own at row first_positive + i
    shared: Tensor | None  # [S, D], candidates of all queries
    private: Tensor | None  # [N, K, D]
    temperature: Tensor  # 0-dim, on the queries' device or the host
    query_ids: Tensor | None  # [N] int64
    positive_ids: Tensor | None  # [P]
    shared_ids: Tensor | None  # [S]
    private_ids: Tensor | None  # [N, K]
    dims: Sequence[int]  # rising
    weights: Sequence[float]  # of the dims
    first_positive: int | None  # None: the queries' own positives are not among these
    total: int
