"""Time and memory of one piece of work: CUDA events and torch's allocator on a GPU, the host's clock on a CPU."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Step = Callable[[], object]


class Clock:
    """Seconds of device time between two calls, one before and one after the work; `prepare` comes before both.

    On a GPU `prepare` overwrites the L2 cache, and the host gets ahead meanwhile, by about 0.2 ms: a step that keeps
    the host for longer is measured with its launches.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._flushed: Tensor | None = None
        self._start: torch.cuda.Event | None = None
        self._total = 0.0  # seconds
        self.host_seconds = 0.0  # that the last call of `once` kept the host; on a GPU its launches

    def prepare(self) -> None:
        if self.device.type == "cuda":
            if self._flushed is None:
                size = max(4 * torch.cuda.get_device_properties(self.device).L2_cache_size, 2**29)
                self._flushed = torch.empty(size, dtype=torch.uint8, device=self.device)
            self._flushed.zero_()
            self._start = None

    def __call__(self) -> float:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        if self._start is None:
            self._start = event
        else:
            event.synchronize()
            self._total += self._start.elapsed_time(event) / 1e3
            self._start = None
        return self._total

    def once(self, step: Step) -> float:
        """Seconds of one call of `step`."""
        self.prepare()
        start, host = self(), time.perf_counter()
        step()
        self.host_seconds = time.perf_counter() - host
        return self() - start


class Span:
    """A stretch of a longer piece of work, `with Span(device) as span: ...`; nothing waits for the GPU within it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []  # CUDA events, or seconds

    def __enter__(self) -> Span:
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def begin(self) -> None:
        self._mark()

    def end(self) -> None:
        self._mark()

    def _mark(self) -> None:
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> float:
        """Waits for the end of the span; to be asked when all the work is launched."""
        start, end = self._marks
        if isinstance(start, float):
            return end - start
        end.synchronize()
        return start.elapsed_time(end) / 1e3


def rotation(input_bytes: int) -> int:
    """How many sets of inputs take turns: three, or one that no cache holds from one call to the next."""
    return 3 if input_bytes <= 2**26 else 1


def warm_up(step: Step, clock: Clock) -> float:
    """Calls `step` twice to twelve times, about 0.2 seconds; returns the seconds of the fastest call but the first."""
    step()
    seconds = clock.once(step)
    for _ in range(min(10, int(0.2 / max(seconds, 1e-6)))):
        seconds = min(seconds, clock.once(step))
    return seconds


def allocated_bytes(device: torch.device) -> int:
    """What tensors take on a GPU now; on a CPU what the process has in memory; 0 where that is unknown."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    _give_back()
    return _status("VmRSS") or 0


def peak_bytes(step: Step, device: torch.device) -> int | None:
    """The most that tensors take on a GPU during `step`, which is waited for.

    On a CPU the most memory of the process, as Linux counts it (to about a MiB); None where it does not.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    except OSError:
        step()
        return None
    step()
    return _status("VmHWM")


def peak_above(base: int, step: Step, device: torch.device) -> int | None:
    """peak_bytes less `base`, allocated_bytes of before an implementation was made.

    On a CPU less what the process has now: modules that it imported would count.
    """
    if device.type == "cpu":
        base = allocated_bytes(device)
    peak = peak_bytes(step, device)
    return None if peak is None else max(0, peak - base)


def _give_back() -> None:
    """glibc keeps freed memory; with it, what comes next would seem to need none."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _status(field: str) -> int | None:
    """Bytes, by Linux."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    found = [line.split()[1] for line in text.splitlines() if line.startswith(f"{field}:")]
    return int(found[0]) * 1024 if found else None


def free_bytes(device: torch.device) -> int | None:
    """What can still be allocated on a GPU; None, unknown, for a CPU."""
    if device.type != "cuda":
        return None
    gc.collect()  # what a peer left in a reference cycle
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]
