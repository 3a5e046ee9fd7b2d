"""What a suite consists of: cases, the inputs and exact result of a case, and the implementations that are compared.

Case: a dataclass whose fields identify it in a result file; `work(part)` is its useful work.
Workload: the inputs and the exact result of a case on a device. `facts`: further entries of the case in a row;
`check(implementation)` returns Checked, or raises NotRun or WrongResult.
"""

import importlib
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks import timing

SUITES = ("attention", "contrastive", "step")
# "ours"; "rival": the same result in another way; "bound": less work than asked for, such as attention without the
# mask; "gemms": the GEMMs alone.
Role = Literal["ours", "rival", "bound", "gemms"]
# After one of these errors every later call in the process fails as well. Older torch raises RuntimeError instead.
STICKY: tuple[type[BaseException], ...] = tuple(filter(None, [getattr(torch, "AcceleratorError", None)]))


class NotRun(Exception):
    """An implementation is skipped; the message is the reason."""


class WrongResult(Exception):
    """The result differs from the exact one: no time is reported."""


@dataclass(frozen=True)
class Implementation:
    """One way to do the work of a suite. about: half a sentence for the report."""

    name: str
    role: Role
    about: str

    def bytes_needed(self, case: Any) -> int:
        """Estimate of what it allocates at once, besides the inputs; 0 if that is little."""
        return 0


@dataclass(frozen=True)
class Checked:
    """An implementation whose results are right. peak_bytes: above the inputs, None where unknown.

    step: for a part such as "backward", the function to time. errors: relative, by result. facts: further entries of
    its row, asked for after timing.
    """

    step: Callable[[str], timing.Step]
    peak_bytes: int | None
    errors: dict[str, float]
    facts: Callable[[], dict[str, Any]] = dict


@dataclass(frozen=True)
class Suite:
    """parts: what is timed separately. cases: by type of device, the most informative first.

    on_request: cases that take minutes, measured only where --where selects them.
    """

    name: str
    parts: tuple[str, ...]
    cases: Callable[[str], Sequence[Any]]
    workload: Callable[[Any, torch.device], Any]
    implementations: Sequence[Implementation]
    on_request: Callable[[str], Sequence[Any]] = lambda _: ()


def load_suite(name: str) -> Suite:
    """From benchmarks/NAME/cases.py and benchmarks/NAME/peers."""
    cases = importlib.import_module(f"benchmarks.{name}.cases")
    peers = importlib.import_module(f"benchmarks.{name}.peers")
    on_request = getattr(cases, "on_request", lambda _: ())
    return Suite(name, cases.PARTS, cases.cases, cases.Workload, peers.IMPLEMENTATIONS, on_request)


@contextmanager
def guarded(device: torch.device, implementation: Implementation, bytes_needed: int = 0) -> Iterator[None]:
    """Turns whatever keeps an implementation from running into NotRun; an error of ours is a defect: WrongResult."""
    free = timing.free_bytes(device) if bytes_needed else None
    if free is not None and bytes_needed > free:
        raise NotRun(f"needs about {bytes_needed / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free")
    try:
        yield
    except torch.OutOfMemoryError:
        raise NotRun("out of memory") from None
    except Exception as error:  # a peer may fail in any way, and the others go on
        if isinstance(error, (NotRun, WrongResult, *STICKY)):
            raise
        lines = str(error).splitlines() or [""]
        message = f"{type(error).__name__}: {lines[0].split('. ')[0]}"[:200]
        if implementation.role == "ours":
            traceback.print_exc()
            raise WrongResult(message) from error
        raise NotRun(f"is not installed: {error}" if isinstance(error, ImportError) else message) from None


def relative_error(name: str, got: Tensor, want: Tensor, tolerance: float) -> float:
    """By the (Frobenius) norm. Raises WrongResult above the tolerance, and for NaN."""
    error = float((got - want).norm() / want.norm())
    if not error <= tolerance:
        raise WrongResult(f"{name} is off by {error:.2g} of its norm")
    return error


def poison_free_memory(like: Sequence[Tensor]) -> None:
    """Fills memory that the allocator hands out next with NaN: results that are never written do not look right."""
    for poison in [torch.empty_like(x) for x in like]:
        poison.fill_(torch.nan)
