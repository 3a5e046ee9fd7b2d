"""Soft-masked attention against its peers, forward and backward: python -m benchmarks.attention

32 query and 8 key/value heads, bfloat16, about 16,384 tokens, L = 512 ... 32,768, D = 112 and 128, the most telling
shapes first. The JSON is written after every row, so a run that is stopped is a smaller one. Without a GPU a few small
shapes run on the CPU with the torch backend.

exit status: 0 measured on a GPU; 1 some result was wrong (it has no time); 3 no GPU, so GPU figures are missing;
130 stopped by Ctrl-C
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, timing
from benchmarks.attention_cases import (
    FLASH,
    FLOP,
    IMPLEMENTATIONS,
    Case,
    Implementation,
    NotRun,
    Shape,
    WrongResult,
    our_backend,
)

HEAD_DIMS = (112, 128)
LENGTHS = {"cuda": (512, 1024, 2048, 4096, 8192, 16384, 32768), "cpu": (128, 512)}
TOKENS = {"cuda": 16384, "cpu": 512}
COLUMNS = "{:>6} {:>4} {:20} {:>9} {:>9} {:>9} {:>9} {:>8} {:>9} {:>9}"
HEADER = COLUMNS.format("", "", "", "ms", "", "TFLOP/s", "", "peak", "flash ms", "/ this")
HEADER += "\n" + COLUMNS.format("L", "D", "implementation", *["forward", "backward"] * 2, "MiB", "forward", "backward")


def shapes(device_type: str, lengths: Sequence[int] | None = None, head_dims: Sequence[int] = HEAD_DIMS) -> list[Shape]:
    """Those nearest to L = 8192 first."""
    pairs = [(length, head_dim) for length in lengths or LENGTHS[device_type] for head_dim in head_dims]
    pairs.sort(key=lambda pair: (abs(math.log2(pair[0] / 8192)), pair[1]))
    return [Shape(max(1, TOKENS[device_type] // length), length, head_dim) for length, head_dim in pairs]


def measure(case: Case, implementation: Implementation, clock: timing.Clock) -> dict[str, Any]:
    """A row of the result; where times are missing "reason" says why, and "wrong" whether the result was wrong."""
    row = {"implementation": implementation.name, **asdict(case.shape), "alpha": implementation.alpha}
    try:
        prepared = case.prepare(implementation)
    except (NotRun, WrongResult) as error:
        return {**row, "wrong": isinstance(error, WrongResult), "reason": str(error)}
    row |= {"wrong": False, "reason": None, "peak_bytes": prepared.peak_bytes, "relative_errors": prepared.errors}
    for direction in FLOP:
        result = timing.measure(prepared.step(direction), clock)
        row[direction] = {**asdict(result), "tflop_per_s": case.shape.flop(direction) / result.median_ms / 1e9}
    return row


def run(
    todo: Sequence[Shape],
    implementations: Sequence[Implementation],
    device: torch.device,
    out: Path,
    budget_minutes: float,
) -> dict[str, Any]:
    """Measures until all is done, the budget is spent or Ctrl-C comes; `out` is valid JSON all the time."""
    start, clock = time.monotonic(), timing.Clock(device)
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {"machine": machine.facts(device), "our_backend": our_backend(device)}
    result |= {"stopped": "unfinished", "rows": rows}
    _write(out, result)
    try:
        for shape in todo:
            case = None  # frees the last one before the next is made
            case = Case(shape, device)
            for implementation in implementations:
                if time.monotonic() - start >= budget_minutes * 60:
                    raise TimeoutError
                rows.append(measure(case, implementation, clock))
                _write(out, result)
                print(f"[{time.monotonic() - start:4.0f} s] {_line(rows[-1], rows)}", flush=True)
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


def _line(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    label = (row["length"], row["head_dim"], row["implementation"])
    if row["reason"]:
        verdict = "WRONG" if row["wrong"] else "left out"
        return f"{COLUMNS.format(*label, *[''] * 7).rstrip()}  {verdict}: {row['reason']}"
    flash = [r for r in rows if (r["length"], r["head_dim"], r["implementation"]) == (*label[:2], FLASH.name)]
    times = [row[direction]["median_ms"] for direction in FLOP]
    return COLUMNS.format(
        *label,
        *(f"{value:.3f}" for value in times),
        *(f"{row[direction]['tflop_per_s']:.1f}" for direction in FLOP),
        "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}",
        *(f"{flash[0][d]['median_ms'] / row[d]['median_ms']:.2f}" if flash and d in flash[0] else "-" for d in FLOP),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attention", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", help="tokens of a sequence (default: see above)")
    parser.add_argument("--head-dims", type=int, nargs="+", default=HEAD_DIMS)
    parser.add_argument("--device", choices=["cuda", "cpu"], help="default: cuda if there is one")
    parser.add_argument("--budget-minutes", type=float, default=8.0, help="no row is begun after it (default: 8)")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/attention-GPU-TIME.json")
    options = parser.parse_args(arguments)
    if min(*options.head_dims, *(options.lengths or [1])) < 1:
        parser.error("--lengths and --head-dims must be at least 1")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device")
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    name = f"attention-{re.sub(r'[^a-z0-9]+', '-', name.lower())}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    out = options.out or Path(__file__).parent / "results" / name
    if device.type == "cpu":
        print("No GPU: a few small shapes on the CPU, backend 'torch'. GPU FIGURES ARE MISSING.", flush=True)
    elif our_backend(device) == "torch":
        print("The CUDA kernels are missing, 'ours' is the torch backend: see conan_fast.build_info()", flush=True)

    chosen = shapes(device.type, options.lengths, options.head_dims)
    result = run(chosen, IMPLEMENTATIONS, device, out, options.budget_minutes)
    print(f"\n{HEADER}", *(_line(row, result["rows"]) for row in result["rows"]), sep="\n")
    print(f"\n{out}" + (f" (incomplete: {result['stopped']})" if result["stopped"] else ""))
    if any(row["wrong"] for row in result["rows"]):
        return 1
    if result["stopped"] == "Ctrl-C":
        return 130
    return 0 if device.type == "cuda" else 3


if __name__ == "__main__":
    sys.exit(main())
