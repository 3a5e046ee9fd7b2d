"""Time and memory of one piece of work: CUDA events and torch's allocator on a GPU, the host's clock on a CPU."""

import contextlib
import ctypes
import gc
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
    """Times calls. On a GPU it overwrites the L2 cache before each one.

    The host gets ahead by about 0.2 ms meanwhile: a step that keeps it for longer is measured with its launches.
    total: seconds of all calls so far.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.total = device, 0.0
        self._flushed: Tensor | None = None

    def once(self, step: Step) -> Seconds:
        """One call of `step`."""
        seconds = self._on_a_gpu(step) if self.device.type == "cuda" else self._on_a_cpu(step)
        self.total += seconds.work
        return seconds

    def _on_a_cpu(self, step: Step) -> Seconds:
        start = time.perf_counter()
        step()
        seconds = time.perf_counter() - start
        return Seconds(seconds, seconds)

    def _on_a_gpu(self, step: Step) -> Seconds:
        self.flush()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        host = time.perf_counter()
        step()
        host = time.perf_counter() - host
        end.record()
        end.synchronize()
        return Seconds(start.elapsed_time(end) / 1e3, host)

    def flush(self) -> None:
        """Overwrites the L2 cache of a GPU."""
        if self.device.type == "cuda":
            if self._flushed is None:
                size = max(4 * torch.cuda.get_device_properties(self.device).L2_cache_size, 2**29)
                self._flushed = torch.empty(size, dtype=torch.uint8, device=self.device)
            self._flushed.zero_()


def rotation(input_bytes: int) -> int:
    """How many sets of inputs take turns: three, or one if no cache holds it from one call to the next."""
    return 3 if input_bytes <= 2**26 else 1


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


def peak_bytes(step: Step, device: torch.device) -> int | None:
    """Peak memory of all tensors on a GPU during `step`, which is waited for.

    On a CPU the peak of the process, as Linux counts it (to about a MiB); None where it does not.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    except OSError:
        step()
        return None
    step()
    return _linux_bytes("/proc/self/status", "VmHWM")


def peak_above(base: int, step: Step, device: torch.device) -> int | None:
    """peak_bytes less `base`, the allocated_bytes before an implementation was made.

    On a CPU less the present memory of the process, so that imported modules do not count.
    """
    if device.type == "cpu":
        base = allocated_bytes(device)
    peak = peak_bytes(step, device)
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
