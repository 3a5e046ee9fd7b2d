"""InfoNCE across processes: everybody's candidates on every process, and their gradients back to their owners."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from . import _checks


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


def candidates(
    group: Any,
    queries: Tensor,
    positives: Tensor,
    shared: Tensor | None,
    private: Tensor | None,
    positive_ids: Tensor | None,
    shared_ids: Tensor | None,
) -> tuple[int, int, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """(global row of the first local query, rows in all, and the last arguments but `private`, of all processes).

    Reads the sizes on the host. Raises ValueError, on all processes alike, if they disagree in anything but N.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError("group needs torch.distributed to be initialised, and it is not")
    sizes, shared_sizes = _sizes(group, queries, shared, private, positive_ids is not None, shared_ids is not None)
    rank = dist.get_rank(group)
    if sum(sizes) == 0:
        raise ValueError("queries must have at least one row in some process of group, got none")
    first, total = sum(sizes[:rank]), sum(sizes)
    all_positives: Tensor = _GatherRows.apply(positives, sizes, group)
    if positive_ids is not None:
        positive_ids = _gather_rows(positive_ids, sizes, group)
    if shared is not None:
        shared = _GatherRows.apply(shared, shared_sizes, group)
        if shared_ids is not None:
            shared_ids = _gather_rows(shared_ids, shared_sizes, group)
    return first, total, all_positives, shared, positive_ids, shared_ids


def _sizes(
    group: Any, queries: Tensor, shared: Tensor | None, private: Tensor | None, has_ids: bool, has_negative_ids: bool
) -> tuple[list[int], list[int]]:
    """(N, shared negatives) of every process; ValueError where something that must agree does not."""
    dtype = _checks.FLOAT_DTYPES.index(queries.dtype)
    kind = [queries.shape[1], dtype, shared is not None, private is not None, has_ids, has_negative_ids]
    negatives = 0 if shared is None else shared.shape[0]
    local = torch.tensor([queries.shape[0], negatives, *map(int, kind)], device=queries.device)
    parts = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, local, group=group)
    everybody = torch.stack(parts).tolist()
    if any(other[2:] != everybody[0][2:] for other in everybody):
        raise ValueError(
            "the processes of group must agree in D, dtype, negatives and ids; got per process "
            f"[N, shared negatives, D, dtype, shared, private, positive_ids, negative_ids]: {everybody}"
        )
    return [int(other[0]) for other in everybody], [int(other[1]) for other in everybody]
