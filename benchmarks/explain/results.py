"""What the benchmarks' result files say: ceilings of a GPU, and times of the operations that kernels belong to."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.explain.kernels import Case, Operation
from benchmarks.result import FOLDER, Run, Time, read
from benchmarks.roofline import Ceilings


def load(files: Sequence[Path] | None = None) -> list[Run]:
    """Runs on a GPU, the newest first, by default of benchmarks/results. Raises BadResult."""
    runs = [read(file) for file in (sorted(FOLDER.glob("*.json")) if files is None else files)]
    return sorted((run for run in runs if run.gpu), key=lambda run: str(run.machine["date"]), reverse=True)


def ceilings(runs: Iterable[Run], suite: str) -> tuple[Ceilings, str] | None:
    """Of the newest run, of that suite if it has it, and where they are from."""
    for run in runs:
        for name in (suite, *run.suites):
            if run.suites.get(name, {}).get("ceilings"):
                return run.ceilings(name), run.origin
    return None


def times(runs: Iterable[Run], operation: Operation) -> Iterator[Time]:
    for row in (row for run in runs for row in run.rows(operation.suite)):
        if row.name == operation.implementation and operation.part in row.parts:
            yield row.parts[operation.part]


def find(runs: Iterable[Run], operation: Operation, case: Case) -> list[Time]:
    """The newest time of the operation on each GPU."""
    wanted = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(case).items()}
    found: dict[str | None, Time] = {}
    for time in times(runs, operation):
        if all(time.row["case"].get(name) == value for name, value in wanted.items()):
            found.setdefault(time.row.run.gpu, time)
    return list(found.values())
