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
from ..autograd import keep_gradients, kept_gradients
from ..backend import Backend
from ..batch import Batch, Gradients
from .gather import Layout

# Bound on the candidates of all processes and their gradients; above it they travel.
GATHERED_BYTES = 256 << 20


def needed(layout: Layout, queries: Tensor) -> bool:
    """Whether the candidates are too large to gather; the same answer on all processes."""
    element = queries.element_size()  # bytes
    if layout.with_gradients:
        element += torch.finfo(_checks.accumulation_dtype(queries.dtype)).bits // 8
    rows = sum(layout.sizes) + sum(layout.shared_sizes)
    return len(layout.sizes) > 1 and rows * queries.shape[1] * element > GATHERED_BYTES


class RingLoss(torch.autograd.Function):
    """(loss, losses [dims]) of the local queries against the candidates of all processes.

    apply(*batch, layout, group, backend). batch: the local Batch, with the total of all processes. The gradients of
    positives and shared negatives are sums over the queries of all processes.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        *fields, layout, group, backend = arguments
        batch = Batch(*fields)
        with torch.autocast(batch.queries.device.type, enabled=False):
            ring = _Ring(batch, layout, group, backend)
            losses, logsumexp = ring.losses()
            empty = batch.queries.new_empty(0)
            grads = ring.gradients(logsumexp) if layout.with_gradients else Gradients(empty, empty, empty, empty, empty)
        return keep_gradients(ctx, batch, losses, grads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        return *kept_gradients(ctx, grads[0]), *[None] * (len(Batch._fields) - len(Gradients._fields) + 3)


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


class _Ring:
    """The local queries, and the candidates of all processes, which come by one part at a time."""

    def __init__(self, batch: Batch, layout: Layout, group: Any, backend: Backend) -> None:
        self.batch, self.layout, self.group, self.backend = batch, layout, group, backend
        self.travelling = [batch.positives, batch.shared, batch.positive_ids, batch.shared_ids]

    def losses(self) -> tuple[Tensor, Tensor]:
        """First round: (losses [dims], logsumexp over everybody's candidates [dims, N])."""
        queries = self.batch.queries
        shape, dtype = (len(self.batch.dims), len(queries)), _checks.accumulation_dtype(queries.dtype)
        logsumexp, own_scores = queries.new_full(shape, -torch.inf, dtype=dtype), queries.new_zeros(shape, dtype=dtype)
        for _, part in self._tour():
            more, own = self.backend.statistics(part)
            logsumexp, own_scores = torch.logaddexp(logsumexp, more), own_scores + own
        return (logsumexp - own_scores).sum(1) / self.batch.total, logsumexp

    def gradients(self, logsumexp: Tensor) -> Gradients:
        """Second round: the gradients of the local tensors, in the dtype in which they wait."""
        staying: Gradients | None = None  # of queries, private negatives and temperature
        moving: _Moving | None = None
        for owner, part in self._tour():
            grads = self.backend.gradients(part, logsumexp)
            if staying is None:
                staying = grads
            else:
                staying.queries.add_(grads.queries)
                staying = staying._replace(temperature=staying.temperature + grads.temperature)
            leaving = [grads.positives] if self.batch.shared is None else [grads.positives, grads.shared]
            if moving is not None:
                for total, so_far in zip(leaving, moving.arrived(), strict=True):
                    total += so_far
            if len(self.layout.sizes) > 1:
                shapes = self._shapes((owner - 1) % len(self.layout.sizes))[: len(leaving)]
                moving = _Moving(leaving, shapes, self.group, first_tag=4)
        assert staying is not None
        home = leaving if moving is None else moving.arrived()
        shared = home[1] if len(home) > 1 else self.batch.queries.new_empty(0)
        kept = _checks.kept_gradient_dtype(self.batch.queries.dtype)
        features = [x.to(kept) for x in (staying.queries, home[0], shared, staying.private)]
        tau = self.batch.temperature
        return Gradients(*[*features, staying.temperature.to(tau.device, tau.dtype)])

    def _tour(self) -> Iterator[tuple[int, Batch]]:
        """(owner, the local queries with the owner's candidates) for all processes, this one first."""
        rank, world = self.layout.rank, len(self.layout.sizes)
        present = [x for x in self.travelling if x is not None]
        for step in range(world):
            moving = None
            if step + 1 < world:
                moving = _Moving(present, self._shapes((rank - step - 1) % world), self.group, first_tag=0)
            tensors = iter(present)
            part = [None if x is None else next(tensors) for x in self.travelling]
            yield (rank - step) % world, self._with_candidates(part, local=step == 0)
            if moving is not None:
                present = moving.arrived()

    def _with_candidates(self, part: list[Any], local: bool) -> Batch:
        """The batch with a part of the candidates; private negatives count once, with the local part."""
        positives, shared, positive_ids, shared_ids = part
        batch = self.batch._replace(
            positives=positives, shared=shared, positive_ids=positive_ids, shared_ids=shared_ids
        )
        return batch if local else batch._replace(private=None, private_ids=None, first_positive=None)

    def _shapes(self, owner: int) -> list[Sequence[int]]:
        """Of the owner's travelling tensors."""
        sizes = (self.layout.sizes[owner], self.layout.shared_sizes[owner]) * 2
        return [(size, *x.shape[1:]) for x, size in zip(self.travelling, sizes, strict=True) if x is not None]
