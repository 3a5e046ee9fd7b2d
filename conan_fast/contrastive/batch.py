"""What a backend of InfoNCE takes and gives: a Batch, and its Gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Queries and candidates, checked. Losses are sums over these queries / total."""

    queries: Tensor  # [N, D]
    positives: Tensor  # [P, D], query i's own positive at row first_positive + i
    shared: Tensor | None  # [S, D], candidates of all queries
    private: Tensor | None  # [N, K, D], candidates of their own query only
    temperature: Tensor  # 0-dim, on the queries' device or the host
    query_ids: Tensor | None  # [N] int64
    positive_ids: Tensor | None  # [P]
    shared_ids: Tensor | None  # [S]
    private_ids: Tensor | None  # [N, K]
    dims: Sequence[int]  # Matryoshka prefixes, rising
    dim_weights: Sequence[float]
    first_positive: int | None  # None: the queries' own positives are not among these
    total: int  # queries of all processes

    @property
    def features(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor]:
        """The tensors that get gradients: the first fields, in the order of Gradients."""
        return self[:5]


class Wanted(NamedTuple):
    """Which of a Batch's features need a gradient."""

    queries: bool = False
    positives: bool = False
    shared: bool = False
    private: bool = False
    temperature: bool = False


class Gradients(NamedTuple):
    """Gradients of a Batch's features; None where none is wanted."""

    queries: Tensor | None = None
    positives: Tensor | None = None
    shared: Tensor | None = None
    private: Tensor | None = None
    temperature: Tensor | None = None

    @staticmethod
    def of_wanted(wanted: Wanted, grads: Sequence[Tensor]) -> Gradients:
        """From the wanted ones alone, as an operator returns them."""
        found = iter(grads)
        return Gradients(*[next(found) if is_wanted else None for is_wanted in wanted])


def dim_slices(dims: Sequence[int]) -> list[slice]:
    """The columns that each of the rising `dims` adds to the one before: slice m is dims[m - 1]:dims[m]."""
    return [slice(low, high) for low, high in zip([0, *dims[:-1]], dims, strict=True)]


def dim_parts(x: Tensor, dims: Sequence[int]) -> Sequence[Tensor]:
    """Views of x [n, D]: its columns by `dim_slices`."""
    if len(dims) == 1 and dims[0] == x.shape[1]:
        return (x,)
    ends = [*dims] if dims[-1] == x.shape[1] else [*dims, x.shape[1]]
    return x.split_with_sizes([high - low for low, high in zip([0, *ends[:-1]], ends, strict=True)], 1)[: len(dims)]
