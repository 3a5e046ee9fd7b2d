"""One suite of a run: for each shape all implementations, checked, then measured in the same rounds."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import torch

from benchmarks import paired, timing
from benchmarks.floors import Work
from benchmarks.peer import Implementation, NotRun, WrongResult, leaves_out
from benchmarks.result import without_time

Row = dict[str, Any]

ROUNDS = 30  # at least, if MAX_SECONDS and the deadline allow
LEAST_ROUNDS = 8  # at least, if MAX_SECONDS allow: fewer have no interval
SECONDS = {"cuda": 0.5, "cpu": 0.2}  # of measurement for each implementation, at least
MAX_SECONDS = {"cuda": 8.0, "cpu": 12.0}  # of one part of one group of implementations, at most
MAX_ROUNDS = 300
SLOWEST = {"cuda": 5.0, "cpu": 3.0}  # seconds of one call; what takes longer is left out
GROUP_SHARE = 0.6  # of the free memory: the rest is for what the estimates do not know


class Shape(Protocol):
    """A dataclass: its fields identify the case in a result."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def work(self, part: str) -> Work: ...


class Prepared(Protocol):
    """An implementation whose results are right; peak_bytes: above the inputs, None where unknown."""

    peak_bytes: int | None
    errors: dict[str, float]

    def step(self, part: str) -> timing.Step: ...

    def after(self) -> dict[str, Any]:
        """What the row says beside times; asked for when these are taken."""


class Case(Protocol):
    """A shape with its inputs on a device. facts: what a row says beside the shape's fields."""

    facts: dict[str, Any]

    def prepare(self, implementation: Any) -> Prepared:
        """Raises NotRun, or WrongResult."""


S = TypeVar("S", bound=Shape)


@dataclass(frozen=True)
class Suite(Generic[S]):
    """shapes: by type of device, the most telling first. parts: what is timed separately."""

    name: str
    parts: tuple[str, ...]
    shapes: Callable[[str], Sequence[S]]
    case: Callable[[S, torch.device], Any]  # a Case
    implementations: Sequence[Implementation]


class Seconds(NamedTuple):
    """One call: of the work, and of the host, which launches it."""

    work: float
    host: float


@dataclass
class Progress:
    """What is told while measuring: a row is done, an implementation is being prepared, measured."""

    row: Callable[[Row], None] = lambda _: None
    now: Callable[[str, Implementation | None], None] = lambda _, __: None  # what, and with which implementation
    deadline: float = field(default=float("inf"))  # by time.monotonic()

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.deadline


def run_shape(suite: Suite[S], shape: S, device: torch.device, clock: timing.Clock, progress: Progress) -> None:
    """Rows of the shape go to `progress` group by group; begins no group after the deadline."""
    progress.now(f"{suite.name} {asdict(shape)}: inputs", None)
    torch.compiler.reset()  # after some shapes torch.compile would fall back to eager
    try:
        case = suite.case(shape, device)
    except torch.OutOfMemoryError:
        for implementation in suite.implementations:
            reason = "the inputs alone do not fit into memory"
            progress.row(without_time(asdict(shape), implementation.name, implementation.role, reason=reason))
        return
    for number, group in enumerate(groups(suite.implementations, shape, timing.free_bytes(device))):
        if progress.over:
            return
        for row in _Group(suite, shape, case, device, clock, progress, number).rows(group):
            progress.row(row)


def groups(implementations: Sequence[Implementation], shape: Any, free: int | None) -> Iterator[list[Implementation]]:
    """Implementations that fit into memory together, in their order, ours in each for comparison.

    Those that take no memory or more than there is are in the first: it costs nothing to say why they are left out.
    """
    ours = [i for i in implementations if i.role == "ours"][:1]
    room = None if free is None else GROUP_SHARE * free - sum(i.bytes_needed(shape) for i in ours)
    needs = {i: i.bytes_needed(shape) for i in implementations if i not in ours}
    ours_and_hopeless = [*ours, *(i for i, needed in needs.items() if free is not None and not 0 < needed <= free)]
    group, used = ours_and_hopeless, 0
    for implementation, needed in needs.items():
        if implementation in ours_and_hopeless:
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
        self,
        suite: Suite[Any],
        shape: Any,
        case: Case,
        device: torch.device,
        clock: timing.Clock,
        progress: Progress,
        number: int,
    ) -> None:
        self.suite, self.shape, self.case, self.device = suite, shape, case, device
        self.clock, self.progress, self.number = clock, progress, number
        self._reasons: dict[Implementation, tuple[bool, str]] = {}  # whether wrong, and why there is no time

    def rows(self, group: Sequence[Implementation]) -> Iterator[Row]:
        # Ours comes again in every later group, for comparison only, and if there is something to compare with.
        again = group[:1] if self.number and group[0].role == "ours" else []
        prepared: dict[Implementation, Prepared] = {}
        for implementation in [*(i for i in group if i not in again), *again]:
            if implementation in again and not prepared:
                break
            if (ready := self._tried(implementation, partial(self._prepare, implementation))) is not None:
                prepared[implementation] = ready
        seconds = {part: self._part(part, prepared) for part in self.suite.parts}
        for implementation in group:
            if implementation in again:
                continue
            yield self._row(implementation, prepared.get(implementation), seconds, group[0])

    def _tried(self, implementation: Implementation, call: Callable[[], Any]) -> Any:
        """What `call` returns; None, and why is kept, if it cannot be or is wrong."""
        try:
            with leaves_out(self.device, 0, ours=implementation.role == "ours"):
                return call()
        except (NotRun, WrongResult) as reason:  # not kept itself: its frames may hold a whole model
            self._reasons[implementation] = (isinstance(reason, WrongResult), str(reason))
            return None

    def _prepare(self, implementation: Implementation) -> Prepared:
        if self.progress.over and implementation.role != "ours":
            raise NotRun("the time was up")
        self._now(implementation, "checked")
        needed = implementation.bytes_needed(self.shape)
        with leaves_out(self.device, needed, ours=implementation.role == "ours"):
            return self.case.prepare(implementation)

    def _now(self, implementation: Implementation, what: str) -> None:
        text = f"{self.suite.name} {asdict(self.shape)}: {implementation.name} is {what}"
        self.progress.now(text, implementation)

    def _part(self, part: str, prepared: dict[Implementation, Prepared]) -> dict[Implementation, list[Seconds]]:
        """Of each round; those of an implementation that fails on the way are dropped."""
        steps: dict[Implementation, timing.Step] = {}
        calls: dict[Implementation, float] = {}
        for implementation, ready in prepared.items():
            if implementation in self._reasons:
                continue
            self._now(implementation, f"warmed up, {part}")
            made = self._tried(implementation, partial(self._warm, ready, part))
            if made is not None:
                steps[implementation], calls[implementation] = made
        wanted = max(ROUNDS, SECONDS[self.device.type] * len(calls) / max(1e-6, sum(calls.values())))
        last = time.monotonic() + MAX_SECONDS[self.device.type]
        end = min(last, self.progress.deadline)
        seconds: dict[Implementation, list[Seconds]] = {implementation: [] for implementation in steps}
        order = random.Random(0)
        self.progress.now(f"{self.suite.name} {asdict(self.shape)}: all are measured together, {part}", None)
        for round_number in range(min(MAX_ROUNDS, round(wanted))):
            if round_number and time.monotonic() > (end if round_number >= LEAST_ROUNDS else last):
                break
            for implementation in order.sample(list(steps), len(steps)):
                self._now(implementation, f"measured, {part}")
                taken = self._tried(implementation, partial(self._once, steps[implementation]))
                if taken is None:
                    del steps[implementation], seconds[implementation]
                else:
                    seconds[implementation].append(taken)
        return seconds

    def _once(self, step: timing.Step) -> Seconds:
        return Seconds(self.clock.once(step), self.clock.host_seconds)

    def _warm(self, ready: Prepared, part: str) -> tuple[timing.Step, float]:
        step = ready.step(part)
        seconds = timing.warm_up(step, self.clock)
        if seconds > (most := SLOWEST[self.device.type]):
            raise NotRun(f"takes {seconds:.1f} s, more than {most:g} s")
        return step, seconds

    def _row(
        self,
        implementation: Implementation,
        prepared: Prepared | None,
        seconds: dict[str, dict[Implementation, list[Seconds]]],
        ours: Implementation,
    ) -> Row:
        wrong, reason = self._reasons.get(implementation, (False, None))
        case = asdict(self.shape) | self.case.facts
        name, role = implementation.name, implementation.role
        row = without_time(case, name, role, group=self.number, wrong=wrong, reason=reason)
        if reason is None and prepared is not None:
            row |= {"peak_bytes": prepared.peak_bytes, "relative_errors": prepared.errors, **prepared.after()}
            row["parts"] = {}
            for part, all_times in seconds.items():
                times = [taken.work for taken in all_times[implementation]]
                host = [taken.host for taken in all_times[implementation]]
                compared = implementation is not ours and ours.role == "ours"
                our_times = [taken.work for taken in all_times.get(ours, [])] if compared else []
                row["parts"][part] = {
                    "timing": asdict(paired.Timing.of(times)),
                    "host_ms": paired.Timing.of(host).median_ms if self.device.type == "cuda" else None,
                    **asdict(self.shape.work(part)),
                    "versus_ours": asdict(paired.compare(our_times, times)) if our_times else None,
                }
        return row
