"""InfoNCE across processes: the candidates of all processes on each of them, their gradients back to their owners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ... import _checks
from ..batch import Batch


class _GatherRows(torch.autograd.Function):
    """Rows of all processes, in the order of ranks; the gradients that all processes have for them are summed."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, sizes: list[int], group: Any) -> Tensor:
        ctx.sizes, ctx.group = sizes, group
        return _gather_rows(local, sizes, group)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        total = grads[0].to(_checks.accumulation_dtype(grads[0].dtype), copy=True).contiguous()
        dist.all_reduce(total, group=ctx.group)
        own: Tensor = total.split(ctx.sizes)[dist.get_rank(ctx.group)]
        return own.to(grads[0].dtype), None, None


class _Sum(torch.autograd.Function):
    """The sum over processes. Each process owns one term, so the gradient of its term is the sum's."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, group: Any) -> Tensor:
        total = local.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None


def summed(local: Tensor, group: Any) -> Tensor:
    """The sum of `local` over the group, on every process."""
    total: Tensor = _Sum.apply(local, group)
    return total


def _gather_rows(local: Tensor, sizes: list[int], group: Any) -> Tensor:
    """local [n, ...] of every process, concatenated; collectives want equal shapes, so the rows are padded for them."""
    padded = local.new_zeros((max(sizes), *local.shape[1:]))
    padded[: local.shape[0]] = local
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


@dataclass(frozen=True)
class Layout:
    """The sizes of all processes' parts of the batch; the same on all processes but for the rank."""

    rank: int
    sizes: list[int]  # queries, and positives, of each process
    shared_sizes: list[int]  # shared negatives of each process
    with_gradients: bool  # some process wants gradients

    @property
    def first(self) -> int:
        """The place of the first local query in the whole batch."""
        return sum(self.sizes[: self.rank])

    @property
    def total(self) -> int:
        """Queries of all processes."""
        return sum(self.sizes)


def layout(group: Any, batch: Batch, with_gradients: bool) -> Layout:
    """The sizes of all processes, on the host.

    Raises ValueError, on all processes alike, if they disagree in anything but N, or if no process has a query.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError("group needs torch.distributed to be initialised, and it is not")
    rows, size = batch.queries.shape
    dtype = _checks.FLOAT_DTYPES.index(batch.queries.dtype)
    present = [x is not None for x in (batch.shared, batch.private, batch.positive_ids, batch.shared_ids)]
    negatives = 0 if batch.shared is None else batch.shared.shape[0]
    numbers = [rows, negatives, with_gradients, size, dtype, *present]
    local = torch.tensor([int(number) for number in numbers], device=batch.queries.device)
    parts = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, local, group=group)
    everybody = torch.stack(parts).tolist()
    if any(other[3:] != everybody[0][3:] for other in everybody):
        raise ValueError(
            "the processes of group must agree in D, dtype, negatives and ids; got per process [N, shared negatives, "
            f"gradients wanted, D, dtype, shared, private, positive_ids, negative_ids]: {everybody}"
        )
    sizes, shared_sizes, wanted = ([int(other[place]) for other in everybody] for place in range(3))
    if sum(sizes) == 0:
        raise ValueError("queries must have at least one row in some process of group, got none")
    return Layout(dist.get_rank(group), sizes, shared_sizes, any(wanted))


def gathered(group: Any, layout: Layout, batch: Batch) -> Batch:
    """The local queries with the candidates of all processes."""

    def rows(local: Tensor, sizes: list[int]) -> Tensor:
        is_ids = local.dtype == torch.int64
        everybody: Tensor = _gather_rows(local, sizes, group) if is_ids else _GatherRows.apply(local, sizes, group)
        return everybody

    return batch._replace(
        positives=rows(batch.positives, layout.sizes),
        positive_ids=None if batch.positive_ids is None else rows(batch.positive_ids, layout.sizes),
        shared=None if batch.shared is None else rows(batch.shared, layout.shared_sizes),
        shared_ids=None if batch.shared_ids is None else rows(batch.shared_ids, layout.shared_sizes),
        first_positive=layout.first,
        total=layout.total,
    )
