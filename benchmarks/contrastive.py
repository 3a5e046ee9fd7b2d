"""InfoNCE at all Matryoshka dims against its peers, forward and backward: python -m benchmarks.contrastive

N = 1,024 ... 65,536 pairs; K = 0 and 7 hard negatives for each, shared by all queries; D = 1,024 and 3,584; seven dims
and one; bfloat16; the most telling shapes first. Each time stands beside that of the three bare products of size N M D,
M = N (1 + K), which nobody can do without. The JSON is written after every row, so a run that is stopped is a smaller
one. Without a GPU a few small shapes run on the CPU, in float32.

ours, ours_once_per_dim    conan_fast.info_nce for all dims at once, and called for each dim
eager, eager_compiled      normalise, q @ c.T / t, cross_entropy for each dim; the same under torch.compile
st_mnrl, st_cached_mnrl    sentence-transformers' (Cached)MultipleNegativesRankingLoss inside its MatryoshkaLoss

exit status: 0 measured on a GPU; 1 some result was wrong (it has no time); 3 no GPU, so GPU figures are missing;
130 stopped by Ctrl-C
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from benchmarks import machine, runner, timing
from benchmarks.contrastive_cases import FLOOR, IMPLEMENTATIONS, OURS, Case, Implementation, Shape
from benchmarks.contrastive_losses import our_backend

PAIRS = {"cuda": (1024, 4096, 16384, 65536), "cpu": (256,)}
DIMS = {"cuda": (1024, 3584), "cpu": (1024,)}
NEGATIVES = (0, 7)
PAPER = {3584: (256, 512, 1024, 1536, 2048, 3072, 3584)}
EIGHTHS = (1, 2, 3, 4, 5, 7, 8)
COLUMNS = "{:>6} {:>2} {:>5} {:>4} {:18} {:>10} {:>10} {:>10} {:>8} {:>8} {:>7}"
HEADER = COLUMNS.format("", "", "", "", "", "ms", "10 %", "90 %", "floor", "peak", "/ ours")
HEADER += "\n" + COLUMNS.format("N", "K", "D", "dims", "implementation", "median", "", "", "/ this", "MiB", "")


def matryoshka(dim: int) -> tuple[int, ...]:
    """The paper's seven dims for its 3,584, else seven eighths."""
    return PAPER.get(dim) or tuple(sorted({max(1, dim * part // 8) for part in EIGHTHS}))


def shapes(
    device_type: str,
    pairs: Sequence[int] | None = None,
    negatives: Sequence[int] = NEGATIVES,
    dims: Sequence[int] | None = None,
) -> list[Shape]:
    """First N = 16,384, the largest D, seven dims; then what differs from it in fewer of the three."""
    dims = dims or DIMS[device_type]
    found = []
    for size, dim, count in itertools.product(pairs or PAIRS[device_type], dims, sorted(negatives)):
        for prefixes in dict.fromkeys((matryoshka(dim), (dim,))):
            distance = abs(math.log(size / 16384, 4)) + (dim != max(dims)) + (len(prefixes) == 1)
            found.append((distance, Shape(size, count, dim, prefixes)))
    return [shape for _, shape in sorted(found, key=lambda pair: (pair[0], pair[1].negatives, -pair[1].pairs))]


def measure(case: Case, implementation: Implementation, clock: timing.Clock, floors: dict[Shape, float]) -> runner.Row:
    def measured() -> runner.Row:
        prepared = case.prepare(implementation)
        result = timing.measure(prepared.step, clock)
        if implementation is FLOOR:
            floors[case.shape] = result.median_ms
        floor = floors.get(case.shape)
        return {
            "peak_bytes": prepared.peak_bytes,
            "relative_errors": prepared.errors,
            "time": asdict(result),
            "tflop_per_s": case.shape.flop / result.median_ms / 1e9,
            "share_of_floor": None if floor is None else floor / result.median_ms,
        }

    row: runner.Row = {"implementation": implementation.name, **asdict(case.shape)}
    row |= {"candidates": case.shape.candidates, "dtype": str(case.dtype).removeprefix("torch.")}
    if implementation in OURS:
        backend, reason = our_backend(case.inputs, case.shape.dims)
        row |= {"backend": backend, "kernels_not_used": reason}
    return runner.with_reason(row, measured)


def _place(row: runner.Row) -> tuple[int, int, int, int]:
    return row["pairs"], row["negatives"], row["dim"], len(row["dims"])


def _line(row: runner.Row, rows: Sequence[runner.Row]) -> str:
    label = (*_place(row), row["implementation"])
    if row["reason"]:
        return f"{COLUMNS.format(*label, *[''] * 6).rstrip()}  {runner.without_time(row)}"
    mine = [r for r in rows if (*_place(r), r["implementation"]) == (*label[:4], OURS[0].name) and "time" in r]
    time, share, peak = row["time"], row["share_of_floor"], row["peak_bytes"]
    return COLUMNS.format(
        *label,
        *(f"{time[key]:.3f}" for key in ("median_ms", "low_ms", "high_ms")),
        "-" if share is None else f"{share:.1%}",
        "-" if peak is None else f"{peak / 2**20:.0f}",
        f"{time['median_ms'] / mine[0]['time']['median_ms']:.2f}" if mine else "-",
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = runner.parser("contrastive", __doc__)
    parser.add_argument("--pairs", type=int, nargs="+", metavar="N", help="(default: see above)")
    parser.add_argument("--negatives", type=int, nargs="+", metavar="K", default=NEGATIVES)
    parser.add_argument("--dims", type=int, nargs="+", metavar="D", help="the full width (default: see above)")
    names = [implementation.name for implementation in IMPLEMENTATIONS]
    parser.add_argument("--only", choices=names, nargs="+", help="implementations to run, beside the three products")
    options = parser.parse_args(arguments)
    if min(*(options.pairs or [1]), *(options.dims or [1])) < 1 or min(options.negatives) < 0:
        parser.error("--pairs and --dims must be at least 1, --negatives at least 0")
    device = runner.device_of(parser, options)
    out = runner.result_file("contrastive", options, device)
    chosen = shapes(device.type, options.pairs, options.negatives, options.dims)
    if device.type == "cpu":
        print("No GPU: a few small shapes on the CPU, backend 'torch'. GPU FIGURES ARE MISSING.", flush=True)
    else:
        sample = [torch.ones(2, chosen[0].dim, dtype=torch.bfloat16, device=device)] * 2
        if reason := our_backend(sample, chosen[0].dims)[1]:
            print(f"The CUDA kernels do not run, 'ours' is the torch backend: {reason}", flush=True)

    wanted = [i for i in IMPLEMENTATIONS if i is FLOOR or i.name in (options.only or names)]
    clock, case = timing.Clock(device), runner.Newest(lambda shape: Case(shape, device))
    floors: dict[Shape, float] = {}
    facts: dict[str, Any] = {"machine": machine.facts(device)}
    facts |= {"packages": {name: _version(name) for name in ("sentence-transformers", "triton")}}
    result = runner.run(
        [(shape, implementation) for shape in chosen for implementation in wanted],
        lambda job: measure(case(job[0]), job[1], clock, floors),
        _line,
        facts,
        out,
        options.budget_minutes,
    )
    return runner.finish(result, HEADER, _line, out, device)


if __name__ == "__main__":
    sys.exit(main())
