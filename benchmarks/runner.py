"""What the benchmark commands share: rows measured one by one, a result file that is always valid, the command line."""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from benchmarks import timing

Row = dict[str, Any]
J = TypeVar("J")
K = TypeVar("K")
V = TypeVar("V")


class NotRun(Exception):
    """Left out, and why."""


class WrongResult(Exception):
    """Differs from the exact result: a wrong result has no time."""


@contextmanager
def leaves_out(device: torch.device, bytes_needed: int, *, ours: bool) -> Iterator[None]:
    """Turns what keeps an implementation from running into NotRun; an error of ours is a defect and is raised."""
    free = timing.free_bytes(device)
    if free is not None and bytes_needed > free:
        raise NotRun(f"needs about {bytes_needed / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free")
    try:
        yield
    except torch.OutOfMemoryError:
        raise NotRun("out of memory") from None
    except RuntimeError as error:
        if ours:
            raise
        raise NotRun(str(error).splitlines()[0].split(". ")[0]) from None


def peak_of_quick(step: timing.Step, device: torch.device, max_seconds: float) -> int | None:
    """timing.peak_bytes; NotRun for a step that is too slow to be repeated."""
    start = time.perf_counter()
    peak = timing.peak_bytes(step, device)
    if (seconds := time.perf_counter() - start) > max_seconds:
        raise NotRun(f"takes {seconds:.1f} s, more than {max_seconds:g} s")
    return peak


def with_reason(row: Row, measure: Callable[[], Row]) -> Row:
    """`row` with what was measured; where that is missing "reason" says why, and "wrong" if the result was wrong."""
    try:
        return {**row, "wrong": False, "reason": None, **measure()}
    except (NotRun, WrongResult) as error:
        return {**row, "wrong": isinstance(error, WrongResult), "reason": str(error)}


class Newest(Generic[K, V]):
    """make(key), kept for calls with the same key; freed before the next is made."""

    def __init__(self, make: Callable[[K], V]) -> None:
        self._make = make
        self._kept: list[tuple[K, V]] = []

    def __call__(self, key: K) -> V:
        if not self._kept or self._kept[0][0] != key:
            self._kept.clear()
            self._kept.append((key, self._make(key)))
        return self._kept[0][1]


def run(
    jobs: Sequence[J],
    measure: Callable[[J], Row],
    line: Callable[[Row, Sequence[Row]], str],
    facts: dict[str, Any],
    out: Path,
    budget_minutes: float,
) -> dict[str, Any]:
    """Measures until all is done, the budget is spent or Ctrl-C comes; `out` is valid JSON all the time.

    line: a row, given all rows so far, as text. facts: what the result says beside its rows.
    """
    start = time.monotonic()
    rows: list[Row] = []
    result: dict[str, Any] = {**facts, "stopped": "unfinished", "rows": rows}
    _write(out, result)
    try:
        for job in jobs:
            if time.monotonic() - start >= budget_minutes * 60:
                raise TimeoutError
            rows.append(measure(job))
            _write(out, result)
            print(f"[{time.monotonic() - start:4.0f} s] {line(rows[-1], rows)}", flush=True)
        result["stopped"] = None
    except TimeoutError:
        result["stopped"] = f"the budget of {budget_minutes:g} minutes is spent"
    except KeyboardInterrupt:
        result["stopped"] = "Ctrl-C"
    _write(out, result)
    return result


def _write(out: Path, result: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, out)


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Of the command `python -m benchmarks.NAME`, with the options that all have."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--device", choices=["cuda", "cpu"], help="default: cuda if there is one")
    made.add_argument("--budget-minutes", type=float, default=8.0, help="no row is begun after it (default: 8)")
    made.add_argument("--out", type=Path, help=f"default: benchmarks/results/{name}-GPU-TIME.json")
    return made


def device_of(parser: argparse.ArgumentParser, options: argparse.Namespace) -> torch.device:
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device")
    return torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def result_file(name: str, options: argparse.Namespace, device: torch.device) -> Path:
    if options.out is not None:
        return Path(options.out)
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    gpu = re.sub(r"[^a-z0-9]+", "-", gpu.lower())
    return Path(__file__).parent / "results" / f"{name}-{gpu}-{time.strftime('%Y%m%d-%H%M%S')}.json"


def finish(
    result: dict[str, Any], header: str, line: Callable[[Row, Sequence[Row]], str], out: Path, device: torch.device
) -> int:
    """Prints the table; the exit status: 0 measured on a GPU, 1 something wrong, 3 no GPU, 130 Ctrl-C."""
    print(f"\n{header}", *(line(row, result["rows"]) for row in result["rows"]), sep="\n")
    print(f"\n{out}" + (f" (incomplete: {result['stopped']})" if result["stopped"] else ""))
    if any(row["wrong"] for row in result["rows"]):
        return 1
    if result["stopped"] == "Ctrl-C":
        return 130
    return 0 if device.type == "cuda" else 3


def without_time(row: Row) -> str:
    return f"{'WRONG' if row['wrong'] else 'left out'}: {row['reason']}"
