"""What a reader finds within a minute: the distance to the floor, the closest peer, the gain of the whole step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.report import text
from benchmarks.result import Row, Run, Time, by_case

_NAMES = {
    ("attention", "forward"): "soft-masked attention, forward",
    ("attention", "backward"): "soft-masked attention, backward",
    ("contrastive", "both"): "InfoNCE, forward + backward",
    ("step", "step"): "one optimiser step",
}


def closest(rows: Sequence[Row], part: str, role: str = "rival") -> Time | None:
    """The fastest implementation of that role that has the time of `part`."""
    times = [time for row in rows if row.role == role and row.measured and (time := row.time(part)) is not None]
    return min(times, key=lambda time: time.ms, default=None)


def telling(run: Run, suite: str) -> list[list[Row]]:
    """The rows of the case that a suite puts first; of the step the first of each stage."""
    cases: dict[str, list[Row]] = {}
    for rows in by_case(run.rows(suite)).values():
        some = list(rows.values())
        if any(row.name == "ours" and row.measured for row in some):
            cases.setdefault(some[0]["case"].get("stage", ""), some)
    return list(cases.values())


def _lines(run: Run, suite: str) -> Iterator[list[str]]:
    for rows in telling(run, suite):
        ours = next(row for row in rows if row.name == "ours")
        for time in ours.times():
            cells = [f"{_NAMES[suite, time.part]}<br>{ours.case}", text.milliseconds(time.ms) + "°" * time.of_the_host]
            cells.append(f"{time.share_of_floor:.0%} ({text.milliseconds(time.floor_ms)})")
            for role in ("rival", "bound"):
                cells.append(_versus(closest(rows, time.part, role)))
            usual = next((row for row in rows if row.name in ("eager", "transformers_sdpa") and row.measured), None)
            cells.append(_versus(None if usual is None else usual.time(time.part)))
            yield cells


def _versus(time: Time | None) -> str:
    return "-" if time is None else f"`{time.row.name}`: {text.ratio(time.versus_ours)}"


def table(run: Run, suites: Sequence[str]) -> str:
    header = [
        "the most telling case",
        "ours",
        "share of the floor (the floor)",
        "closest peer with the same result: its time as a multiple of ours",
        "fastest that does less: likewise",
        "the usual way: likewise",
    ]
    return text.table(header, [line for suite in suites for line in _lines(run, suite)])
