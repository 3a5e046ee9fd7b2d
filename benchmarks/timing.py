"""Time and memory of one piece of work: CUDA events and torch's allocator on a GPU, the host's clock on a CPU."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Step = Callable[[], object]


class Clock:
    """Seconds of device time between two calls, one before and one after the work; `prepare` comes before both.

    On a GPU `prepare` overwrites the L2 cache, and the host gets ahead meanwhile, so that launching is not measured.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._flushed: Tensor | None = None
        self._start: torch.cuda.Event | None = None
        self._total = 0.0  # seconds

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
        start = self()
        step()
        return self() - start


@dataclass(frozen=True)
class Timing:
    """Milliseconds over `rounds` repeats: median, 10th and 90th percentile."""

    median_ms: float
    low_ms: float
    high_ms: float
    rounds: int

    @staticmethod
    def of(seconds: Sequence[float]) -> Timing:
        times = torch.tensor(seconds, dtype=torch.float64) * 1e3
        low, median, high = (times.quantile(part).item() for part in (0.1, 0.5, 0.9))
        return Timing(median, low, high, len(times))


class Span:
    """A stretch of a longer piece of work, `with Span(device) as span: ...`; nothing waits for the GPU within it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[torch.cuda.Event | float] = []

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


def warm_up(step: Step, clock: Clock) -> int:
    """Repeats `step` until it is warm; returns how many rounds fill about half a second, 5 to 200 (CPU: a tenth)."""
    seconds = 0.5 if clock.device.type == "cuda" else 0.05
    step()
    rounds = round(min(max(seconds / clock.once(step), 5), 200))
    for _ in range(rounds // 4):
        step()
    return rounds


def measure(step: Step, clock: Clock) -> Timing:
    return Timing.of([clock.once(step) for _ in range(warm_up(step, clock))])


def allocated_bytes(device: torch.device) -> int:
    """What tensors take on a GPU now; 0 for a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def peak_bytes(step: Step, device: torch.device) -> int | None:
    """The most that tensors take on a GPU during `step`, which is waited for; None for a CPU."""
    if device.type != "cuda":
        step()
        return None
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def free_bytes(device: torch.device) -> int | None:
    """What can still be allocated on a GPU; None, unknown, for a CPU."""
    if device.type != "cuda":
        return None
    gc.collect()  # what a peer left in a reference cycle
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]
