"""The result file of a run: JSON, one line for each row, valid at any moment of the run; and access to what it says."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Run:
    """One run of `python -m benchmarks run`: its times can be compared with each other."""

    path: Path
    content: Json

    @property
    def machine(self) -> Json:
        return self.content["machine"]

    @property
    def suites(self) -> Json:
        return self.content["suites"]

    @property
    def gpu(self) -> str | None:
        return self.machine["gpu"]

    @property
    def commit(self) -> str:
        changes = " with changes" if self.machine.get("uncommitted_changes") else ""
        return (self.machine["git_commit"] or "unknown")[:12] + changes

    def stale(self, csrc_sha256: str) -> bool:
        """Whether it was measured with other kernel sources than those of `csrc_sha256`."""
        return self.machine["csrc_sha256"] != csrc_sha256

    def ceilings(self, suite: str) -> Ceilings:
        return Ceilings(**self.suites[suite]["ceilings"])

    def rows(self, suite: str) -> "list[Row]":
        return [Row(self, suite, content) for content in self.suites.get(suite, {}).get("rows", [])]


@dataclass(frozen=True)
class Row:
    """One implementation of one case."""

    run: Run
    suite: str
    content: Json

    def __getitem__(self, key: str) -> Any:
        return self.content[key]

    @property
    def name(self) -> str:
        return self.content["implementation"]

    @property
    def role(self) -> str:
        return self.content["role"]

    @property
    def case(self) -> str:
        return label(self.suite, self.content["case"])

    @property
    def timed(self) -> bool:
        """Right, and with times."""
        return self.content["reason"] is None

    @property
    def parts(self) -> "dict[str, Time]":
        return {part: Time(self, part) for part in self.content.get("parts", {})}

    @property
    def ms(self) -> float:
        """Of all parts together."""
        return sum(time.ms for time in self.parts.values())

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


@dataclass(frozen=True)
class Time:
    """One part, such as "forward", of a row."""

    row: Row
    part: str

    @property
    def content(self) -> Json:
        return self.row["parts"][self.part]

    @property
    def timing(self) -> Json:
        """A benchmarks.paired.Timing."""
        return self.content["timing"]

    @property
    def ms(self) -> float:
        return self.timing["median_ms"]

    @property
    def of_the_host(self) -> bool:
        """Whether launching the work took the host about as long."""
        host_ms = self.content.get("host_ms")
        return host_ms is not None and host_ms > 0.8 * self.ms

    @property
    def work(self) -> Work:
        return Work(self.content["flop"], self.content["bytes"])

    @property
    def flop_per_s(self) -> float:
        return self.work.flop / self.ms * 1e3

    @property
    def roofline_ms(self) -> float:
        """By the ceilings of the same process."""
        return 1e3 * self.work.seconds(self.row.run.ceilings(self.row.suite))

    @property
    def versus_ours(self) -> Json | None:
        """benchmarks.paired.Comparison of the rounds in which ours ran too; None for ours."""
        return self.content["versus_ours"]


def by_case(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """In their order."""
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(row.case, []).append(row)
    return cases
