"""One suite, measured in this process, into a result file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import ceilings, machine, result, suite, timing
from benchmarks.peer import Implementation
from benchmarks.result import Row, Run
from benchmarks.suite import Suite


class Recorder:
    """The part of a suite in a result file, which is written after every row; a reason is printed once."""

    def __init__(self, out: Path, name: str, device: torch.device, budget_minutes: float) -> None:
        content = result.read(out).content if out.exists() else None
        content = content or {"format": result.FORMAT, "machine": machine.facts(device), "suites": {}}
        self.run, self.name, self.start = Run(out, content), name, time.monotonic()
        empty: dict[str, Any] = {"ceilings": None, "rows": [], "cases_done": 0, "rows_done": 0}
        # There is one already where the process died of an implementation, and a new one goes on.
        self.content: dict[str, Any] = content["suites"].setdefault(name, empty)
        self.content |= {"stopped": None, "now": "ceilings", "culprit": None, "case": None}
        self._told: set[tuple[str, str]] = set()
        self.progress = suite.Progress(self._add, self._now, self.start + 60 * budget_minutes)

    def write(self, **changes: Any) -> None:
        self.content.update(changes)
        result.write(self.run.path, self.run.content)

    def _add(self, row: suite.Row) -> None:
        self.content["rows"].append(row)
        self.write()
        told = (row["implementation"], row["reason"])
        if row["reason"] and told in self._told:
            return
        self._told.add(told)
        print(f"[{time.monotonic() - self.start:4.0f} s] {line(Row(self.run, self.name, row))}", flush=True)

    def _now(self, what: str, implementation: Implementation | None) -> None:
        """What is under way, for the case that the process dies of it."""
        culprit = implementation and {"name": implementation.name, "role": implementation.role}
        self.content |= {"now": what, "culprit": culprit}
        if "is measured" not in what:  # that is every call of every round: written only if it is the last
            self.write()


def measure(
    chosen: Suite[Any],
    device: torch.device,
    out: Path,
    *,
    budget_minutes: float,
    where: Sequence[str] = (),
    only: Sequence[str] = (),
    without: Sequence[str] = (),
) -> int:
    """The exit status: 0, 1 if something of ours was wrong, 130 after Ctrl-C. `where`: "FIELD=VALUE" of the shapes."""

    def wanted(implementation: Implementation) -> bool:
        return implementation.name not in without and (not only or implementation.name in only)

    left = replace(chosen, implementations=[i for i in chosen.implementations if wanted(i)])
    shapes = [shape for shape in chosen.shapes(device.type) if _fits(asdict(shape), where)]
    if not left.implementations or not shapes:
        known = ", ".join(i.name for i in chosen.implementations)
        print(f"{chosen.name}: nothing to measure: --where leaves {len(shapes)} cases, --only and --without leave")
        print(f"{len(left.implementations)} implementations of {known}")
        return 0
    recorder = Recorder(out, chosen.name, device, budget_minutes)
    stopped = None
    try:
        recorder.write(ceilings=asdict(ceilings.measure(device)))
        known = ceilings.text(recorder.run.ceilings(chosen.name))
        print(f"\n{chosen.name}: {len(shapes)} cases; ceilings: {known}", flush=True)
        clock = timing.Clock(device)
        for number, shape in enumerate(shapes):
            if number < recorder.content["cases_done"]:
                continue
            if recorder.progress.over:
                stopped = f"the budget of {budget_minutes:.1f} minutes was spent, {len(shapes) - number} cases are left"
                break
            recorder.write(case=asdict(shape))
            suite.run_shape(left, shape, device, clock, recorder.progress)
            recorder.write(cases_done=number + 1, rows_done=len(recorder.content["rows"]))
    except KeyboardInterrupt:
        stopped = "Ctrl-C"
    except Exception:
        recorder.write()
        raise
    recorder.write(stopped=stopped, now=None, culprit=None, case=None)
    rows = recorder.content["rows"]
    if stopped:
        print(f"{chosen.name}: {stopped}", flush=True)
    return 130 if stopped == "Ctrl-C" else int(any(row["wrong"] and row["role"] == "ours" for row in rows))


def _fits(fields: dict[str, Any], where: Sequence[str]) -> bool:
    return all(str(fields.get(field)) == value for field, value in (item.split("=", 1) for item in where))


def line(row: Row) -> str:
    """For the terminal: milliseconds of each part, in brackets how many times ours ("?": perhaps as fast)."""
    if not row.measured:
        return f"{row.case}: {row.name} {'is WRONG' if row['wrong'] else 'is left out'}: {row['reason']}"
    texts = [f"{row.case:38} {row.name:26}"]
    for time_ in row.times():
        versus = time_.versus_ours
        ratio = "" if versus is None else f" ({versus['ratio']:.2f}{'' if versus['differs'] else '?'})"
        texts.append(f"{time_.part} {time_.ms:9.3f} ms{ratio:9}")
    return " ".join([*texts, f"{row.floor_ms / row.ms:6.1%} of the floor"])
