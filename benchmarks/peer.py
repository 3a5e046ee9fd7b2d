"""What is measured: an implementation of some work, ours or a peer's, and what keeps one out of the measurement."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from benchmarks import timing

# "ours"; "rival": the same result in another way; "bound": less work than the task asks for, as attention without the
# mask; "floor": a part that nobody can do without.
Role = Literal["ours", "rival", "bound", "floor"]


# Errors of a kernel that has run: the GPU is lost to the process. Older torch says RuntimeError for everything.
STICKY: tuple[type[Exception], ...] = tuple(filter(None, [getattr(torch, "AcceleratorError", None)]))


class NotRun(Exception):
    """Left out, and why."""


class WrongResult(Exception):
    """Differs from the exact result: a wrong result has no time."""


@dataclass(frozen=True, kw_only=True)
class Implementation:
    """One row of a table. about: half a sentence for the report."""

    name: str
    role: Role
    about: str

    def bytes_needed(self, shape: Any) -> int:
        """About what it allocates at once, beside the inputs of a case; 0 where that is little."""
        return 0


@contextmanager
def leaves_out(device: torch.device, bytes_needed: int, *, ours: bool) -> Iterator[None]:
    """Turns what keeps an implementation from running into NotRun; an error of ours is a defect, WrongResult."""
    free = timing.free_bytes(device) if bytes_needed else None
    if free is not None and bytes_needed > free:
        raise NotRun(f"needs about {bytes_needed / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free")
    try:
        yield
    except (NotRun, WrongResult):
        raise
    except torch.OutOfMemoryError:
        raise NotRun("out of memory") from None
    except STICKY:  # every later call in this process would fail, too, whoever makes it
        raise
    except Exception as error:  # a peer may fail in any way, and the others go on
        lines = str(error).splitlines() or [""]
        message = f"{type(error).__name__}: {lines[0].split('. ')[0]}"[:200]
        if ours:
            traceback.print_exc()
            raise WrongResult(message) from error
        raise NotRun(f"is not installed: {error}" if isinstance(error, ImportError) else message) from None
