"""InfoNCE across processes without gathering: the candidates travel around a ring, a process's part at a time.

Two rounds: the first collects each query's logsumexp over everybody's candidates, the second recomputes the scores for
the gradients. In the second round the gradient of a part travels one step behind it and ends at its owner. While a
process computes with one part, the next one and the gradient so far of the present one are on their way to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from ... import _checks
from .. import autograd
from ..batch import Batch
from .gather import Layout

# Bound on the candidates of all processes and their gradients; above it they travel.
GATHERED_BYTES = 256 << 20


def needed(layout: Layout, queries: Tensor) -> bool:
    """Whether the candidates are too large to gather; the same answer on all processes."""
    number = queries.element_size()
    if layout.with_gradients:
        number += torch.finfo(_checks.accumulation_dtype(queries.dtype)).bits // 8
    rows = sum(layout.sizes) + sum(layout.shared_sizes)
    return len(layout.sizes) > 1 and rows * queries.shape[1] * number > GATHERED_BYTES


class RingLoss(torch.autograd.Function):
    """(weighted sum of losses, losses [dims]) of the local queries against everybody's candidates.

    apply(queries, positives, shared, private, temperature, positive_ids, shared_ids, private_ids, dims, weights,
    layout, group, implementation), all tensors local; implementation: a backend, see contrastive.IMPLEMENTATIONS.
    The gradients of positives and shared are sums over the queries of all processes.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        features, rest = arguments[:5], arguments[5:]
        with torch.autocast(features[0].device.type, enabled=False):
            losses, grads = _loss_and_gradients(features, *rest)
        loss = autograd.weighted_sum(losses, rest[4])
        autograd.keep(ctx, features, grads)
        ctx.mark_non_differentiable(losses)
        return loss, losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        return *autograd.scaled(ctx, grads[0]), *[None] * 8


class _Moving:
    """Tensors that are handed to the next process while others of the given shapes come from the previous one."""

    def __init__(self, sent: Sequence[Tensor], shapes: Sequence[Sequence[int]], group: Any, first_tag: int) -> None:
        self.sent = [x.contiguous() for x in sent]  # held until they have left
        self.received = [x.new_empty(shape) for x, shape in zip(self.sent, shapes, strict=True)]
        rank, world = dist.get_rank(group), dist.get_world_size(group)
        following, previous = (dist.get_global_rank(group, (rank + step) % world) for step in (1, -1))
        operations = []
        for tag, (out, into) in enumerate(zip(self.sent, self.received, strict=True), start=first_tag):
            if out.numel():
                operations.append(dist.P2POp(dist.isend, out, following, group, tag))
            if into.numel():
                operations.append(dist.P2POp(dist.irecv, into, previous, group, tag))
        self.works = dist.batch_isend_irecv(operations) if operations else []

    def arrived(self) -> list[Tensor]:
        """Waits; what came from the previous process."""
        for work in self.works:
            work.wait()
        return self.received


class _Candidates:
    """The local candidates and what is needed to know the others' by."""

    def __init__(self, features: Sequence[Tensor | None], ids: Sequence[Tensor | None], layout: Layout) -> None:
        """features: positives, shared; ids: of both."""
        self.local = [*features, *ids]
        self.layout = layout

    def shapes(self, owner: int) -> list[Sequence[int]]:
        """Of the tensors that are there at all, at their owner."""
        sizes = (self.layout.sizes[owner], self.layout.shared_sizes[owner]) * 2
        return [(size, *x.shape[1:]) for x, size in zip(self.local, sizes, strict=True) if x is not None]

    def tour(self, group: Any) -> Iterator[tuple[int, list[Tensor | None]]]:
        """(owner, [positives, shared, their ids]) for all processes, this one first, then against the ring."""
        rank, world = self.layout.rank, len(self.layout.sizes)
        present = [x for x in self.local if x is not None]
        for step in range(world):
            moving = None
            if step + 1 < world:
                moving = _Moving(present, self.shapes((rank - step - 1) % world), group, first_tag=0)
            tensors = iter(present)
            yield (rank - step) % world, [None if x is None else next(tensors) for x in self.local]
            if moving is not None:
                present = moving.arrived()


def _loss_and_gradients(
    features: Sequence[Any],
    positive_ids: Tensor | None,
    shared_ids: Tensor | None,
    private_ids: Tensor | None,
    dims: Sequence[int],
    weights: Sequence[float],
    layout: Layout,
    group: Any,
    implementation: Any,
) -> tuple[Tensor, list[Tensor]]:
    """(losses [dims], gradients of the five features, made for waiting; empty without gradients)."""
    queries, positives, shared, private, temperature = features
    candidates = _Candidates((positives, shared), (positive_ids, shared_ids), layout)

    def batch(owner: int, part: list[Any]) -> Batch:
        """The local queries and a part of the candidates; private negatives count once, with the local part."""
        own = owner == layout.rank
        alone = (private, private_ids) if own else (None, None)
        ids = (positive_ids, part[2], part[3], alone[1])
        first = 0 if own else None
        return Batch(queries, part[0], part[1], alone[0], temperature, *ids, dims, weights, first, layout.total)

    rows = (len(dims), len(queries))
    dtype = _checks.accumulation_dtype(queries.dtype)
    logsumexp, own_scores = queries.new_full(rows, -torch.inf, dtype=dtype), queries.new_zeros(rows, dtype=dtype)
    for owner, part in candidates.tour(group):
        more, own = implementation.statistics(batch(owner, part))
        logsumexp, own_scores = torch.logaddexp(logsumexp, more), own_scores + own
    losses = (logsumexp - own_scores).sum(1) / layout.total
    if not layout.with_gradients:
        return losses, [queries.new_empty(0)] * 5

    sums: list[Tensor] = []  # of queries, private, temperature: they stay here
    moving: _Moving | None = None
    for owner, part in candidates.tour(group):
        of_queries, of_positives, of_shared, of_private, of_temperature = implementation.gradients(
            batch(owner, part), logsumexp
        )
        if not sums:
            sums = [of_queries, of_private, of_temperature]
        else:
            sums[0] += of_queries
            sums[2] = sums[2] + of_temperature
        travelling = [of_positives] if shared is None else [of_positives, of_shared]
        if moving is not None:
            for total, so_far in zip(travelling, moving.arrived(), strict=True):
                total += so_far
        next_owner = (owner - 1) % len(layout.sizes)
        if len(layout.sizes) > 1:
            moving = _Moving(travelling, candidates.shapes(next_owner)[: len(travelling)], group, first_tag=4)
    home = travelling if moving is None else moving.arrived()
    kept = _checks.kept_gradient_dtype(queries.dtype)
    grads = [sums[0], home[0], home[1] if len(home) > 1 else queries.new_empty(0), sums[1]]
    return losses, [x.to(kept) for x in grads] + [sums[2].to(temperature.device, temperature.dtype)]
