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

from ... import _checks
from ..batch import Batch, Gradients
from .layout import Layout

# Bound on the candidates of all processes and their gradients; above it they travel.
GATHERED_BYTES = 256 << 20


def needed(layout: Layout, queries: Tensor) -> bool:
    """Whether the candidates are too large to gather; the same answer on all processes."""
    element = queries.element_size()  # bytes
    if layout.with_gradients:
        element += torch.finfo(_checks.accumulation_dtype(queries.dtype)).bits // 8
    rows = sum(layout.sizes) + sum(layout.shared_sizes)
    return len(layout.sizes) > 1 and rows * queries.shape[1] * element > GATHERED_BYTES


def sweep(batch: Batch, layout: Layout, group: Any, backend: str) -> tuple[Tensor, Gradients]:
    """(losses [dims] of the local queries, the wanted gradients of the local features of all processes' losses)."""
    ring = _Ring(batch, layout, group, backend)
    losses, logsumexp = ring.losses()
    return losses, ring.gradients(logsumexp) if layout.with_gradients else Gradients()


class _Moving:
    """Tensors that are handed to the next process while others come from the previous one into `rooms`."""

    def __init__(self, sent: Sequence[Tensor], rooms: Sequence[Tensor], group: Any, first_tag: int) -> None:
        self.sent = [x.contiguous() for x in sent]  # held until they have left
        self.received = list(rooms)
        rank, world = dist.get_rank(group), dist.get_world_size(group)
        following, previous = (dist.get_global_rank(group, (rank + step) % world) for step in (1, -1))
        operations = []
        for operation, other, tensors in ((dist.isend, following, self.sent), (dist.irecv, previous, self.received)):
            for tag, x in enumerate(tensors, start=first_tag):
                if x.numel():
                    operations.append(dist.P2POp(operation, x, other, group, tag))
        self.works = dist.batch_isend_irecv(operations) if operations else []

    def arrived(self) -> list[Tensor]:
        """Waits; what came from the previous process."""
        for work in self.works:
            work.wait()
        return self.received


class _Ring:
    """The local queries, and the candidates of all processes, which come by one part at a time."""

    def __init__(self, batch: Batch, layout: Layout, group: Any, backend: str) -> None:
        self.batch, self.layout, self.group, self.backend = batch, layout, group, backend
        self.travelling = [batch.positives, batch.shared, batch.positive_ids, batch.shared_ids]

    def losses(self) -> tuple[Tensor, Tensor]:
        """First round: (losses [dims], logsumexp over everybody's candidates [dims, N])."""
        queries = self.batch.queries
        shape, dtype = (len(self.batch.dims), len(queries)), _checks.accumulation_dtype(queries.dtype)
        logsumexp, own_scores = queries.new_full(shape, -torch.inf, dtype=dtype), queries.new_zeros(shape, dtype=dtype)
        for _, part in self._tour():
            more, own = torch.ops.conan_fast.info_nce_statistics(*part, self.backend)
            logsumexp, own_scores = torch.logaddexp(logsumexp, more), own_scores + own
        return (logsumexp - own_scores).sum(1) / self.batch.total, logsumexp

    def gradients(self, logsumexp: Tensor) -> Gradients:
        """Second round: the wanted gradients of the local features, in the dtype in which they wait."""
        staying: list[Tensor | None] = [None, None, None]  # of queries, private negatives and temperature
        passing: list[Tensor] = []  # those of positives and shared negatives that their owner wants
        moving: _Moving | None = None
        world, mine = len(self.layout.sizes), self.layout.wanted[self.layout.rank]
        for owner, part in self._tour():
            theirs = self.layout.wanted[owner]
            # Private negatives come once, with the local part.
            private = mine.private and part.private is not None
            wanted = mine._replace(positives=theirs.positives, shared=theirs.shared, private=private)
            grads = Gradients()
            if any(wanted):
                found = torch.ops.conan_fast.info_nce_gradients(*part, logsumexp, wanted, self.backend)
                grads = Gradients.of_wanted(wanted, found)
            more = grads.queries, grads.private, grads.temperature
            staying = [b if a is None else a if b is None else a + b for a, b in zip(staying, more, strict=True)]
            passing = [grad for grad in (grads.positives, grads.shared) if grad is not None]
            if moving is not None:
                for total, so_far in zip(passing, moving.arrived(), strict=True):
                    total += so_far
            if world > 1:
                moving = _Moving(passing, self._gradient_rooms((owner - 1) % world, logsumexp), self.group, first_tag=4)
        home = iter(passing if moving is None else moving.arrived())
        positives, shared = (next(home) if is_wanted else None for is_wanted in (mine.positives, mine.shared))
        kept = _checks.kept_gradient_dtype(self.batch.queries.dtype)
        features = [x if x is None else x.to(kept) for x in (staying[0], positives, shared, staying[1])]
        tau = self.batch.temperature
        tau_grad = None if staying[2] is None else staying[2].to(tau.device, tau.dtype)
        return Gradients(*[*features, tau_grad])

    def _tour(self) -> Iterator[tuple[int, Batch]]:
        """(owner, the local queries with the owner's candidates) for all processes, this one first."""
        rank, world = self.layout.rank, len(self.layout.sizes)
        present = [x for x in self.travelling if x is not None]
        for step in range(world):
            moving = None
            if step + 1 < world:
                shapes = self._shapes((rank - step - 1) % world)
                rooms = [x.new_empty(shape) for x, shape in zip(present, shapes, strict=True)]
                moving = _Moving(present, rooms, self.group, first_tag=0)
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

    def _gradient_rooms(self, owner: int, like: Tensor) -> list[Tensor]:
        """For the gradients that the owner wants of its positives and shared negatives."""
        wanted, sizes = self.layout.wanted[owner], (self.layout.sizes[owner], self.layout.shared_sizes[owner])
        size = self.batch.queries.shape[1]
        pairs = zip((wanted.positives, wanted.shared), sizes, strict=True)
        return [like.new_empty(rows, size) for is_wanted, rows in pairs if is_wanted]
