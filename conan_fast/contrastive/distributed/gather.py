"""InfoNCE across processes: the candidates of all processes on each of them, their gradients back to their owners."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ... import _checks
from ..batch import Batch, Gradients
from .layout import Layout


def sweep(batch: Batch, layout: Layout, group: Any, backend: str) -> tuple[Tensor, Gradients]:
    """(losses [dims] of the local queries, the wanted gradients of the local features of all processes' losses)."""

    def optional(local: Tensor | None, sizes: list[int]) -> Tensor | None:
        return None if local is None else _gathered(local, sizes, group)

    everybodys, mine = layout.wanted, layout.wanted[layout.rank]
    # Each process has a part of the gradient of each candidate.
    wanted = mine._replace(positives=any(x.positives for x in everybodys), shared=any(x.shared for x in everybodys))
    whole = batch._replace(
        positives=_gathered(batch.positives, layout.sizes, group),
        positive_ids=optional(batch.positive_ids, layout.sizes),
        shared=optional(batch.shared, layout.shared_sizes),
        shared_ids=optional(batch.shared_ids, layout.shared_sizes),
        first_positive=layout.first,
    )
    losses, found = torch.ops.conan_fast.info_nce_sweep(*whole, wanted, backend)
    of = Gradients.of_wanted(wanted, found)
    summed = of._replace(
        positives=_own_rows(of.positives, layout.sizes, group), shared=_own_rows(of.shared, layout.shared_sizes, group)
    )
    return losses, Gradients(*[grad if is_wanted else None for grad, is_wanted in zip(summed, mine, strict=True)])


def _gathered(local: Tensor, sizes: list[int], group: Any) -> Tensor:
    """local [n, ...] of every process, concatenated; collectives want equal shapes, so the rows are padded for them."""
    padded = local.new_zeros((max(sizes), *local.shape[1:]))
    padded[: local.shape[0]] = local
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def _own_rows(grad: Tensor | None, sizes: list[int], group: Any) -> Tensor | None:
    """The local rows of the sum over processes of grad [rows of all processes, D]."""
    if grad is None:
        return None
    total = grad.to(_checks.accumulation_dtype(grad.dtype))
    dist.all_reduce(total, group=group)
    own: Tensor = total.split(sizes)[dist.get_rank(group)]
    return own.to(grad.dtype, copy=True)  # the others' rows are freed
