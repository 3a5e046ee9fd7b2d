"""What the benchmarks' result files say: ceilings of a GPU, and times of the operations that kernels belong to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.explain.kernels import Operation
from benchmarks.explain.shapes import Shape
from benchmarks.floors import Ceilings
from benchmarks.result import FOLDER, read

Document = Mapping[str, Any]


def load(files: Sequence[Path] | None = None) -> list[Document]:
    """The parsed files; without any, those of benchmarks/results. Raises BadResult."""
    return [read(file).content for file in (sorted(FOLDER.glob("*.json")) if files is None else files)]


def of_gpus(documents: Iterable[Document]) -> list[Document]:
    """Those measured on a GPU, the newest first."""
    return sorted(
        (document for document in documents if document["machine"].get("gpu")),
        key=lambda document: str(document["machine"].get("date")),
        reverse=True,
    )


def origin(document: Document) -> str:
    machine = document["machine"]
    return f"{machine['gpu']}, {str(machine.get('date'))[:10]}, commit {str(machine.get('git_commit'))[:9]}"


def ceilings(documents: Iterable[Document], suite: str) -> tuple[Ceilings, str] | None:
    """Of the newest GPU result, that suite's if it has it, and where it is from."""
    for document in of_gpus(documents):
        suites = document.get("suites", {})
        for part in [suites.get(suite, {}), *suites.values()]:
            if found := part.get("ceilings"):
                return Ceilings(**{name: found[name] for name in Ceilings.__dataclass_fields__}), origin(document)
    return None


@dataclass(frozen=True)
class Measured:
    """The median time of an operation, on which GPU, and whether the kernels have changed since."""

    seconds: float
    ceilings: Ceilings | None
    origin: str
    stale: bool


def find(documents: Iterable[Document], operation: Operation, shape: Shape, csrc_sha256: str) -> list[Measured]:
    """The newest measurement on each GPU, the newest first."""
    found: dict[str, Measured] = {}
    for document, suite, row in _rows(documents, operation):
        gpu = document["machine"]["gpu"]
        if gpu in found or not _same(row["case"], shape.case):
            continue
        of_suite = suite.get("ceilings")
        found[gpu] = Measured(
            seconds=row["parts"][operation.part]["timing"]["median_ms"] / 1e3,
            ceilings=Ceilings(**{name: of_suite[name] for name in Ceilings.__dataclass_fields__}) if of_suite else None,
            origin=origin(document),
            stale=document["machine"].get("csrc_sha256") != csrc_sha256,
        )
    return list(found.values())


def cases(documents: Iterable[Document], operation: Operation) -> list[dict[str, Any]]:
    """The shapes at which the operation was measured on any GPU."""
    found: list[dict[str, Any]] = []
    for _, _, row in _rows(documents, operation):
        if row["case"] not in found:
            found.append(dict(row["case"]))
    return found


def _rows(documents: Iterable[Document], operation: Operation) -> Iterator[tuple[Document, Document, Document]]:
    """(document, suite, row) of each time of the operation; rows that have a reason have no time."""
    for document in of_gpus(documents):
        suite = document.get("suites", {}).get(operation.suite, {})
        for row in suite.get("rows", []):
            parts = row.get("parts") or {}
            if row["implementation"] == operation.implementation and (parts.get(operation.part) or {}).get("timing"):
                yield document, suite, row


def _same(case: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(
        (list(case[name]) if isinstance(value, list) else case[name]) == value if name in case else False
        for name, value in wanted.items()
    )
