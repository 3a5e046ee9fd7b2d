"""Which run a report shows: of each suite one, so that nothing from two runs stands side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.result import BadResult, Run, read


def runs(files: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The results, the newest first, and what is wrong with the other files."""
    found, bad = [], []
    for path in files:
        try:
            found.append(read(path))
        except BadResult as error:
            bad.append(str(error))
    return sorted(found, key=lambda run: run.machine["date"], reverse=True), bad


def newest(found: Sequence[Run], suite: str, csrc_sha256: str, *, gpu: bool) -> Run | None:
    """The newest with rows of the suite; one that is not stale before any that is."""
    of_suite = [run for run in found if (run.gpu is not None) == gpu and run.rows(suite)]
    of_suite.sort(key=lambda run: run.stale(csrc_sha256))  # stable: newest first in both
    return of_suite[0] if of_suite else None
