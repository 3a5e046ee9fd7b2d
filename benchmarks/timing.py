"""Time and memory of one piece of work: CUDA events and torch's allocator on a GPU, the host's clock on a CPU."""

import contextlib
import ctypes
import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

Step = Callable[[], object]


class Seconds(NamedTuple):
    """Of one call: of the work, and of the host, which on a GPU only launches it."""

    work: float
    host: float


class Clock:
    """Times calls. total: seconds of all calls so far."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.total = device, 0.0
        self._flushed: Tensor | None = None

    def once(self, step: Step) -> Seconds:
        """One call of `step`, on a GPU after overwriting the L2 cache.

        The host gets ahead by about 0.2 ms meanwhile: a step that keeps it for longer is measured with its launches.
        """
        self.flush()
        gpu = self.device.type == "cuda"
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2 * gpu)]
        if gpu:
            events[0].record()
        start = time.perf_counter()
        step()
        work = host = time.perf_counter() - start
        if gpu:
            events[1].record()
            events[1].synchronize()
            work = events[0].elapsed_time(events[1]) / 1e3
        self.total += work
        return Seconds(work, host)

    def flush(self) -> None:
        """Overwrites the L2 cache of a GPU."""
        if self.device.type == "cuda":
            if self._flushed is None:
                size = max(4 * torch.cuda.get_device_properties(self.device).L2_cache_size, 2**29)
                self._flushed = torch.empty(size, dtype=torch.uint8, device=self.device)
            self._flushed.zero_()


def rotation(make: Callable[[int], list[Tensor]]) -> list[list[Tensor]]:
    """Inputs for seeds that take turns: three sets, or one if no cache holds it from one call to the next."""
    first = make(0)
    return [first, *(make(seed) for seed in (1, 2) if sum(x.nbytes for x in first) <= 2**26)]


def warm_up(step: Step, clock: Clock) -> float:
    """Calls `step` two to twelve times, about 0.2 seconds; returns the seconds of the fastest call but the first."""
    step()
    seconds = clock.once(step).work
    for _ in range(min(10, int(0.2 / max(seconds, 1e-6)))):
        seconds = min(seconds, clock.once(step).work)
    return seconds


def allocated_bytes(device: torch.device) -> int:
    """Memory of all tensors on a GPU; of the process on a CPU; 0 where that is unknown."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc keeps freed memory; the next allocations would seem to need none
    return _linux_bytes("/proc/self/status", "VmRSS") or 0


def peak_above(base: int, step: Step, device: torch.device) -> int | None:
    """Peak memory of all tensors on a GPU during `step`, above `base`, the allocated_bytes before it was made.

    On a CPU the peak of the process, as Linux counts it (to about a MiB), above its present memory, so that imported
    modules do not count; None where it is unknown.
    """
    peak: int | None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
    else:
        base, peaks = allocated_bytes(device), Path("/proc/self/clear_refs")
        resets = os.access(peaks, os.W_OK)
        if resets:
            peaks.write_text("5")
        step()
        peak = _linux_bytes("/proc/self/status", "VmHWM") if resets else None
    return None if peak is None else max(0, peak - base)


def free_bytes(device: torch.device) -> int | None:
    """What can still be allocated; None where that is unknown."""
    if device.type != "cuda":
        return _linux_bytes("/proc/meminfo", "MemAvailable")
    gc.collect()  # what a peer left in a reference cycle
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def _linux_bytes(file: str, field: str) -> int | None:
    try:
        text = Path(file).read_text(encoding="ascii")
    except OSError:
        return None
    found = [line.split()[1] for line in text.splitlines() if line.startswith(f"{field}:")]
    return int(found[0]) * 1024 if found else None
