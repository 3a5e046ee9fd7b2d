"""Soft-masked attention against its peers, forward and backward: python -m benchmarks.attention

32 query and 8 key/value heads, bfloat16, about 16,384 tokens, L = 512 ... 32,768, D = 112 and 128, the most telling
shapes first. The JSON is written after every row, so a run that is stopped is a smaller one. Without a GPU a few small
shapes run on the CPU with the torch backend.

exit status: 0 measured on a GPU; 1 some result was wrong (it has no time); 3 no GPU, so GPU figures are missing;
130 stopped by Ctrl-C
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks import machine, runner, timing
from benchmarks.attention_cases import (
    FLASH,
    FLOP,
    IMPLEMENTATIONS,
    Case,
    Implementation,
    Shape,
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


def measure(case: Case, implementation: Implementation, clock: timing.Clock) -> runner.Row:
    def measured() -> runner.Row:
        prepared = case.prepare(implementation)
        row: runner.Row = {"peak_bytes": prepared.peak_bytes, "relative_errors": prepared.errors}
        for direction in FLOP:
            result = timing.measure(prepared.step(direction), clock)
            row[direction] = {**asdict(result), "tflop_per_s": case.shape.flop(direction) / result.median_ms / 1e9}
        return row

    row = {"implementation": implementation.name, **asdict(case.shape), "alpha": implementation.alpha}
    return runner.with_reason(row, measured)


def _line(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    label = (row["length"], row["head_dim"], row["implementation"])
    if row["reason"]:
        return f"{COLUMNS.format(*label, *[''] * 7).rstrip()}  {runner.without_time(row)}"
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
    parser = runner.parser("attention", __doc__)
    parser.add_argument("--lengths", type=int, nargs="+", help="tokens of a sequence (default: see above)")
    parser.add_argument("--head-dims", type=int, nargs="+", default=HEAD_DIMS)
    options = parser.parse_args(arguments)
    if min(*options.head_dims, *(options.lengths or [1])) < 1:
        parser.error("--lengths and --head-dims must be at least 1")
    device = runner.device_of(parser, options)
    out = runner.result_file("attention", options, device)
    if device.type == "cpu":
        print("No GPU: a few small shapes on the CPU, backend 'torch'. GPU FIGURES ARE MISSING.", flush=True)
    elif our_backend(device) == "torch":
        print("The CUDA kernels are missing, 'ours' is the torch backend: see conan_fast.build_info()", flush=True)

    chosen = shapes(device.type, options.lengths, options.head_dims)
    jobs = [(shape, implementation) for shape in chosen for implementation in IMPLEMENTATIONS]
    clock, case = timing.Clock(device), runner.Newest(lambda shape: Case(shape, device))
    result = runner.run(
        jobs,
        lambda job: measure(case(job[0]), job[1], clock),
        _line,
        {"machine": machine.facts(device), "our_backend": our_backend(device)},
        out,
        options.budget_minutes,
    )
    return runner.finish(result, HEADER, _line, out, device)


if __name__ == "__main__":
    sys.exit(main())
