"""Measures one case: all implementations are checked, then timed in the same rounds, in random order."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from benchmarks import paired, timing
from benchmarks.result import Json, row_without_times
from benchmarks.suite import Checked, Implementation, NotRun, Suite, WrongResult, guarded

ROUNDS = 30  # at least, if MAX_SECONDS and the deadline allow
LEAST_ROUNDS = 8  # at least, if MAX_SECONDS allow: fewer have no interval
SECONDS = {"cuda": 0.5, "cpu": 0.2}  # of measurement for each implementation, at least
MAX_SECONDS = {"cuda": 8.0, "cpu": 12.0}  # of one part of one group of implementations, at most
MAX_ROUNDS = 300
SLOWEST = {"cuda": 5.0, "cpu": 3.0}  # seconds of one call: a slower implementation is skipped
GROUP_SHARE = 0.6  # of the free memory: the estimates do not know everything

Times = dict[Implementation, list[timing.Seconds]]  # of each round


@dataclass
class Progress:
    """row: called with each row. now: called with what is under way. deadline: by time.monotonic().

    slowest: seconds of one call, from which on an implementation is skipped.
    """

    row: Callable[[Json], None] = lambda _: None
    now: Callable[[str], None] = lambda _: None
    deadline: float = float("inf")
    slowest: float = float("inf")

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.deadline


def run_case(suite: Suite, case: Any, clock: timing.Clock, progress: Progress) -> None:
    """Rows go to `progress` group by group; no group begins after the deadline."""
    progress.now(f"{suite.name} {asdict(case)}: inputs")
    torch.compiler.reset()  # after some shapes torch.compile would fall back to eager
    try:
        workload = suite.workload(case, clock.device)
    except torch.OutOfMemoryError:
        for i in suite.implementations:
            reason = "the inputs alone do not fit into memory"
            progress.row(row_without_times(asdict(case), i.name, i.role, reason=reason))
        return
    for number, group in enumerate(groups(suite.implementations, case, timing.free_bytes(clock.device))):
        if progress.over:
            return
        for row in _Group(suite, case, workload, clock, progress, number).rows(group):
            progress.row(row)


def groups(implementations: Sequence[Implementation], case: Any, free: int | None) -> Iterator[list[Implementation]]:
    """Implementations that fit into memory together, in their order, each group with ours for comparison.

    Those that need no memory, or more than there is, are in the first group: they cost nothing.
    """
    ours = [i for i in implementations if i.role == "ours"][:1]
    room = None if free is None else GROUP_SHARE * free - sum(i.bytes_needed(case) for i in ours)
    needs = {i: i.bytes_needed(case) for i in implementations if i not in ours}
    first = [*ours, *(i for i, needed in needs.items() if free is not None and not 0 < needed <= free)]
    group, used = list(first), 0
    for implementation, needed in needs.items():
        if implementation in first:
            continue
        if room is not None and used + needed > room and used:
            yield group
            group, used = list(ours), 0
        group.append(implementation)
        used += needed
    if group:
        yield group


class _Group:
    """Implementations that are in memory together and run in the same rounds."""

    def __init__(
        self, suite: Suite, case: Any, workload: Any, clock: timing.Clock, progress: Progress, number: int
    ) -> None:
        self.suite, self.case, self.workload, self.clock = suite, case, workload, clock
        self.progress, self.number, self.device_type = progress, number, clock.device.type
        self._reasons: dict[Implementation, tuple[bool, str]] = {}  # whether wrong, and why there is no time

    def rows(self, group: Sequence[Implementation]) -> Iterator[Json]:
        # Ours runs again in every later group, for comparison only, and only if there is something to compare with.
        again = group[:1] if self.number and group[0].role == "ours" else []
        checked: dict[Implementation, Checked] = {}
        for implementation in [*(i for i in group if i not in again), *again]:
            if implementation in again and not checked:
                break
            if (ready := self._tried(implementation, partial(self._check, implementation))) is not None:
                checked[implementation] = ready
        times = {part: self._part(part, checked) for part in self.suite.parts}
        for implementation in group:
            if implementation not in again:
                yield self._row(implementation, checked.get(implementation), times, group[0])

    def _tried(self, implementation: Implementation, call: Callable[[], Any]) -> Any:
        """What `call` returns; None, with the reason kept, if it fails or the result is wrong."""
        try:
            with guarded(self.clock.device, implementation):
                return call()
        except (NotRun, WrongResult) as reason:  # the exception is not kept: its frames may hold a whole model
            self._reasons[implementation] = (isinstance(reason, WrongResult), str(reason))
            return None

    def _now(self, what: str) -> None:
        self.progress.now(f"{self.suite.name} {asdict(self.case)}: {what}")

    def _check(self, implementation: Implementation) -> Checked:
        if self.progress.over and implementation.role != "ours":
            raise NotRun("the time was up")
        self._now(f"{implementation.name} is checked")
        with guarded(self.clock.device, implementation, implementation.bytes_needed(self.case)):
            return self.workload.check(implementation)

    def _part(self, part: str, checked: dict[Implementation, Checked]) -> Times:
        """Times of an implementation that fails on the way are dropped."""
        warm: dict[Implementation, tuple[timing.Step, float]] = {}
        for implementation, ready in checked.items():
            if implementation not in self._reasons:
                self._now(f"{implementation.name} is warmed up, {part}")
                made = self._tried(implementation, partial(self._warm_up, ready, part))
                warm |= {} if made is None else {implementation: made}
        calls = sum(seconds for _, seconds in warm.values())
        wanted = max(ROUNDS, SECONDS[self.device_type] * len(warm) / max(1e-6, calls))
        last = time.monotonic() + MAX_SECONDS[self.device_type]
        end = min(last, self.progress.deadline)
        times: Times = {implementation: [] for implementation in warm}
        order = random.Random(0)
        self._now(f"{', '.join(i.name for i in times)} are measured together, {part}")
        for round_number in range(min(MAX_ROUNDS, round(wanted))):
            if round_number and time.monotonic() > (end if round_number >= LEAST_ROUNDS else last):
                break
            for implementation in order.sample(list(times), len(times)):
                taken = self._tried(implementation, partial(self.clock.once, warm[implementation][0]))
                if taken is None:
                    del times[implementation]
                else:
                    times[implementation].append(taken)
        return times

    def _warm_up(self, ready: Checked, part: str) -> tuple[timing.Step, float]:
        step = ready.step(part)
        seconds = timing.warm_up(step, self.clock)
        if seconds > self.progress.slowest:
            raise NotRun(f"takes {seconds:.1f} s, more than {self.progress.slowest:g} s (see --slowest)")
        return step, seconds

    def _row(self, i: Implementation, ready: Checked | None, times: dict[str, Times], ours: Implementation) -> Json:
        wrong, reason = self._reasons.get(i, (False, None))
        case = asdict(self.case) | self.workload.facts
        row = row_without_times(case, i.name, i.role, group=self.number, wrong=wrong, reason=reason)
        if reason is None and ready is not None:
            row |= {"peak_bytes": ready.peak_bytes, "relative_errors": ready.errors, **ready.facts(), "parts": {}}
            for part, taken in times.items():
                compared = i is not ours and ours.role == "ours"
                row["parts"][part] = self._time(part, taken[i], taken.get(ours, []) if compared else [])
        return row

    def _time(self, part: str, taken: list[timing.Seconds], ours: list[timing.Seconds]) -> Json:
        works, hosts = zip(*taken, strict=True)
        return {
            "timing": asdict(paired.Timing.of(works)),
            "host_ms": paired.Timing.of(hosts).median_ms if self.device_type == "cuda" else None,
            **asdict(self.case.work(part)),
            "versus_ours": asdict(paired.compare([one.work for one in ours], works)) if ours else None,
        }
