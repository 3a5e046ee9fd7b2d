"""What the processes of a group tell each other before InfoNCE: sizes, wanted gradients, and that they agree."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..batch import Batch, Wanted


class Agreed(NamedTuple):
    """What has to be equal on all processes. The names are those of error messages."""

    D: int
    dtype: torch.dtype
    negatives: str  # "none", "shared" or "private"
    positive_ids: bool  # whether there are any
    negative_ids: bool
    dims: tuple[int, ...]
    dim_weights: tuple[float, ...]
    temperature: float | str  # "a tensor": its value is not compared


@dataclass(frozen=True)
class Layout:
    """The sizes of all processes' parts of the batch; the same on all processes but for the rank."""

    rank: int
    sizes: list[int]  # queries, and positives, of each process
    shared_sizes: list[int]  # shared negatives of each process
    wanted: list[Wanted]  # gradients of each process

    @property
    def first(self) -> int:
        """The place of the first local query in the whole batch."""
        return sum(self.sizes[: self.rank])

    @property
    def total(self) -> int:
        """Queries of all processes."""
        return sum(self.sizes)

    @property
    def with_gradients(self) -> bool:
        """Whether some process wants some gradient."""
        return any(any(wanted) for wanted in self.wanted)


def layout(group: Any, batch: Batch, wanted: Wanted, agreed: Agreed) -> Layout:
    """The sizes of all processes, on the host.

    Raises ValueError, on all processes alike, if they disagree in something, if one of them refused its arguments
    (`report_refusal`), or if none has a query.
    """
    if not _initialised():
        raise ValueError("group needs torch.distributed to be initialised, and it is not")
    sizes = batch.queries.shape[0], 0 if batch.shared is None else batch.shared.shape[0]
    everybody = _exchange([1, *sizes, *wanted, *map(_digest, agreed)], batch.queries.device, group)
    rank = dist.get_rank(group)
    if refused := [other for other, row in enumerate(everybody) if not row[0]]:
        raise ValueError(f"info_nce was refused its arguments in the processes {refused} of group: see the error there")
    rows = [row[-len(agreed) :] for row in everybody]
    for place, (name, value) in enumerate(agreed._asdict().items()):
        if any(row[place] != rows[0][place] for row in rows):
            others = [other for other, row in enumerate(rows) if row[place] != rows[rank][place]]
            raise ValueError(
                f"{name} must be the same in all processes of group: in process {rank} it is {value}, in the processes "
                f"{others} it is not"
            )
    queries, shared = ([row[place] for row in everybody] for place in (1, 2))
    if sum(queries) == 0:
        raise ValueError("queries must have at least one row in some process of group, got none")
    return Layout(rank, queries, shared, [Wanted(*map(bool, row[3 : -len(agreed)])) for row in everybody])


def report_refusal(group: Any, queries: Any) -> None:
    """Takes part in the exchange of `layout` for a call whose arguments were refused, so that nobody waits for it.

    Not where `queries` does not say on which device the exchange happens.
    """
    if isinstance(queries, Tensor) and _initialised():
        with suppress(RuntimeError):  # for example the device is not the group's; the refusal itself says more
            _exchange([0] * (1 + 2 + len(Wanted._fields) + len(Agreed._fields)), queries.device, group)


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


def _exchange(numbers: list[int], device: torch.device, group: Any) -> list[list[int]]:
    """The numbers of all processes, in the order of ranks."""
    local = torch.tensor(numbers, dtype=torch.int64, device=device)
    parts = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, local, group=group)
    everybody: list[list[int]] = torch.stack(parts).tolist()
    return everybody


def _digest(value: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(value).encode(), digest_size=7).digest(), "little")
