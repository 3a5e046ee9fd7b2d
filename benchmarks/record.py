"""Measures one suite in this process, into a result file that is rewritten after every row."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, result, roofline, rounds, timing
from benchmarks.result import Json, Row, Run
from benchmarks.suite import Suite

INTERRUPTED, OURS_WRONG = 130, 3  # exit status; 130: as of a program that Ctrl-C ends


@dataclass(frozen=True)
class Selection:
    """where: "FIELD=VALUE" of the cases. only, without: names of implementations."""

    where: Sequence[str] = ()
    only: Sequence[str] = ()
    without: Sequence[str] = ()

    def of(self, suite: Suite, device_type: str) -> tuple[Suite, list[Any]]:
        """The suite with the selected implementations, and the selected cases: those on request if no other fits."""
        where = [item.split("=", 1) for item in self.where]

        def fits(case: Any) -> bool:
            return all(str(asdict(case).get(field)) == value for field, value in where)

        cases = list(filter(fits, suite.cases(device_type))) or list(filter(fits, suite.on_request(device_type)))
        chosen = [i for i in suite.implementations if i.name not in self.without]
        return replace(suite, implementations=[i for i in chosen if not self.only or i.name in self.only]), cases


def measure_suite(suite: Suite, device: torch.device, out: Path, selection: Selection, limits: rounds.Progress) -> int:
    """Returns the exit status: 0, OURS_WRONG, or INTERRUPTED after Ctrl-C. limits: its deadline and slowest count.

    Until the suite ends, `stopped` in the file says what is under way.
    """
    chosen, cases = selection.of(suite, device.type)
    if not chosen.implementations or not cases:
        known = ", ".join(i.name for i in suite.implementations)
        print(f"{suite.name}: nothing to measure: --where selects {len(cases)} cases, --only and --without select")
        print(f"{len(chosen.implementations)} implementations of {known}")
        return 0
    empty = {"format": result.FORMAT, "machine": machine.facts(device), "suites": {}}
    run = result.read(out) if out.exists() else Run(out, empty)
    content: Json = run.suites.setdefault(suite.name, {"ceilings": None, "stopped": None, "rows": []})
    start, printed = time.monotonic(), set()

    def write(**changes: Any) -> None:
        content.update(changes)
        result.write(out, run.content)

    def add(row: Json) -> None:
        write(rows=[*content["rows"], row])
        reason = (row["implementation"], row["reason"])
        if reason not in printed:  # a reason is printed once
            print(f"[{time.monotonic() - start:4.0f} s] {line(Row(run, suite.name, row))}", flush=True)
        printed.update([reason] if row["reason"] else [])

    progress, stopped = replace(limits, row=add, now=lambda what: write(stopped=what)), None
    try:
        write(stopped="ceilings")
        write(ceilings=asdict(roofline.measure(device)))
        print(f"\n{suite.name}: {len(cases)} cases; ceilings: {run.ceilings(suite.name)}", flush=True)
        clock = timing.Clock(device)
        for number, case in enumerate(cases):
            if progress.over:
                stopped = f"the time budget was spent before {len(cases) - number} of {len(cases)} cases"
                break
            rounds.run_case(chosen, case, clock, progress)
    except KeyboardInterrupt:
        stopped = "Ctrl-C"
    write(stopped=stopped)
    if stopped:
        print(f"{suite.name}: {stopped}", flush=True)
    if stopped == "Ctrl-C":
        return INTERRUPTED
    return OURS_WRONG if any(row["wrong"] and row["role"] == "ours" for row in content["rows"]) else 0


def line(row: Row) -> str:
    """For the terminal: milliseconds of each part, in brackets as a multiple of ours ("?": perhaps no difference)."""
    if not row.timed:
        return f"{row.case}: {row.name} {'is WRONG' if row['wrong'] else 'is not measured'}: {row['reason']}"
    texts = [f"{row.case:38} {row.name:26}"]
    for part, taken in row.parts.items():
        versus = taken.versus_ours
        ratio = "" if versus is None else f" ({versus['ratio']:.2f}{'' if versus['differs'] else '?'})"
        texts.append(f"{part} {taken.ms:9.3f} ms{ratio:9}")
    return " ".join([*texts, f"roofline {row.roofline_ms / row.ms:6.1%}"])
