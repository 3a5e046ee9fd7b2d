"""The result file of a run: JSON, one line for each row, valid at any moment of the run; and access to what it says."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.roofline import Ceilings, Work

FORMAT = 2
FOLDER = Path(__file__).parent / "results"
MICRO_BATCH_TOKENS = 16_384  # of one forward pass of a training step, where the case says nothing else
Json = dict[str, Any]


class BadResult(ValueError):
    """A file that is no result of this program."""


class DifferentRuns(ValueError):
    """A ratio was asked for whose two times were not taken side by side."""


def row_without_times(
    case: Json, name: str, role: str, *, group: int = 0, wrong: bool = False, reason: str | None = None
) -> Json:
    """A row but for the times, which are added if `reason` is None."""
    return {"case": case, "implementation": name, "role": role, "group": group, "wrong": wrong, "reason": reason}


def label(suite: str, case: Json) -> str:
    """The name of a case, from a row."""
    if suite == "attention":
        length = f"{case['shortest']}..{case['length']} packed" if case.get("shortest") else case["length"]
        return f"L={length} D={case['head_dim']} B={case['batch']}"
    if suite == "contrastive":
        dims = len(case["dims"])
        return "N={pairs} K={negatives} D={dim}".format_map(case) + f", {dims} dim{'s' * (dims != 1)}"
    text = "{model}, {stage}, {batch_size} pairs, {tokens} tokens".format_map(case)
    size = case.get("micro_batch_tokens", MICRO_BATCH_TOKENS)
    return text if size == MICRO_BATCH_TOKENS else f"{text} in parts of {size}"


def write(path: Path, content: Json) -> None:
    """Atomic: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(_text(content), encoding="utf-8")
    os.replace(partial, path)


def _text(content: Json) -> str:
    """JSON with a line for each top-level entry, suite and row."""
    entries = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items() if key != "suites"]
    suites = []
    for name, suite in content["suites"].items():
        rows = ",\n".join(json.dumps(row) for row in suite.get("rows", []))
        rest = json.dumps({key: value for key, value in suite.items() if key != "rows"} | {"rows": []})
        suites.append(f"{json.dumps(name)}: {rest.removesuffix(']}')}\n{rows}]}}")
    return "{" + ",\n".join([*entries, '"suites": {\n' + ",\n".join(suites) + "}"]) + "}\n"


def read(path: Path) -> "Run":
    """Raises BadResult, with the reason."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadResult(f"{path}: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or not {"machine", "suites"} <= set(content):
        raise BadResult(f"{path}: is not a result of `python -m benchmarks run`, format {FORMAT}")
    return Run(path, content)


class Run:
    """One run of `python -m benchmarks run`: its times can be compared with each other."""

    def __init__(self, path: Path, content: Json) -> None:
        self.path, self.content = path, content
        self.machine: Json = content["machine"]
        self.suites: Json = content["suites"]
        self.gpu: str | None = self.machine["gpu"]

    @property
    def commit(self) -> str:
        changes = " with changes" if self.machine.get("uncommitted_changes") else ""
        return (self.machine["git_commit"] or "unknown")[:12] + changes

    @property
    def origin(self) -> str:
        return f"{self.gpu or 'CPU: ' + self.machine['cpu']}, {self.machine['date'][:10]}, commit {self.commit}"

    def stale(self, csrc_sha256: str) -> bool:
        """Whether it was measured with other kernel sources than those of `csrc_sha256`."""
        return self.machine["csrc_sha256"] != csrc_sha256

    def ceilings(self, suite: str) -> Ceilings:
        return Ceilings(**self.suites[suite]["ceilings"])

    def rows(self, suite: str) -> "list[Row]":
        return [Row(self, suite, content) for content in self.suites.get(suite, {}).get("rows", [])]


class Row:
    """One implementation of one case. timed: right, and with times. parts: such as "forward". ms: of all parts."""

    def __init__(self, run: Run, suite: str, content: Json) -> None:
        self.run, self.suite, self.content = run, suite, content
        self.name: str = content["implementation"]
        self.role: str = content["role"]
        self.case = label(suite, content["case"])
        self.timed = content["reason"] is None
        self.parts = {part: Time(self, time) for part, time in (content.get("parts") or {}).items()}
        self.ms = sum(time.ms for time in self.parts.values())

    def __getitem__(self, key: str) -> Any:
        return self.content[key]

    @property
    def roofline_ms(self) -> float:
        return sum(time.roofline_ms for time in self.parts.values())

    def over(self, other: "Row", part: str | None = None) -> float:
        """This time, of one or all parts, as a multiple of `other`, of the same case and measured in the same run.

        Raises DifferentRuns.
        """
        if self.run.content is not other.run.content:
            raise DifferentRuns(f"{self.run.path.name} and {other.run.path.name} are two runs: there is no ratio")
        if (self.suite, self.case) != (other.suite, other.case):
            raise DifferentRuns(f"{self.case} and {other.case} are two cases: there is no ratio")
        return self.ms / other.ms if part is None else self.parts[part].ms / other.parts[part].ms


class Time:
    """One part of a row. timing: a benchmarks.paired.Timing; ms: its median.

    of_the_host: whether launching the work took the host about as long. versus_ours: a benchmarks.paired.Comparison of
    the rounds in which ours ran too, None for ours.
    """

    def __init__(self, row: Row, content: Json) -> None:
        self.row, self.timing = row, content["timing"]
        self.ms: float = self.timing["median_ms"]
        self.of_the_host = (content.get("host_ms") or 0) > 0.8 * self.ms
        self.work = Work(content["flop"], content["bytes"])
        self.flop_per_s = self.work.flop / self.ms * 1e3
        self.versus_ours: Json | None = content.get("versus_ours")

    @property
    def roofline_ms(self) -> float:
        """By the ceilings of the same process."""
        return 1e3 * self.work.seconds(self.row.run.ceilings(self.row.suite))


def by_case(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """In their order."""
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(row.case, []).append(row)
    return cases
