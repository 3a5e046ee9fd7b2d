"""InfoNCE at seven Matryoshka dims on a CPU, time and peak memory, against the loss once per dim:

    python -m benchmarks.contrastive.cpu [--pairs 8192] [--negatives 7] [--repeats 1]

float32, D = 1,024, hard negatives shared by all queries, forward and backward. Each way runs in a process of its own,
in turn, so that nothing else is in its peak (above the inputs). The usual way goes backward after each dim, which holds
the scores of one dim only; all dims in one graph would take seven times the memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from benchmarks.contrastive.implementation import TEMPERATURE, all_candidates
from benchmarks.contrastive.shape import matryoshka
from conan_fast import info_nce

DIM = 1024
LINE = "{:14} {:>9} {:>12} {:>10}"


def ours(*inputs: Tensor) -> float:
    loss = info_nce(*inputs, temperature=TEMPERATURE, dims=matryoshka(DIM), backend="torch").loss
    loss.backward()
    return loss.item()


def once_per_dim(queries: Tensor, *others: Tensor) -> float:
    total, labels = 0.0, torch.arange(len(queries))
    for dim in matryoshka(DIM):
        candidates = all_candidates(*(x[..., :dim] for x in others))
        scores = normalize(queries[:, :dim], dim=1) @ normalize(candidates, dim=1).T / TEMPERATURE
        loss = cross_entropy(scores, labels)
        del scores
        loss.backward()
        total += loss.item()
    return total


WAYS: dict[str, Callable[..., float]] = {"ours": ours, "once per dim": once_per_dim}


def run(way: str, pairs: int, negatives: int) -> dict[str, float]:
    """Seconds, bytes at the peak above the inputs, and the loss, of one forward and backward pass in this process."""

    def inputs(rows: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        shapes = [(rows, DIM), (rows, DIM), *([(rows, negatives, DIM)] if negatives else [])]
        made = [torch.randn(shape, generator=generator) for shape in shapes]
        made[1].add_(made[0], alpha=0.5)
        return [x.requires_grad_() for x in made]

    WAYS[way](*inputs(64))  # libraries load and set up their own memory
    features = inputs(pairs)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    loss = WAYS[way](*features)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "peak_bytes": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before),
        "loss": loss,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.contrastive.cpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pairs", type=int, default=8192, metavar="N")
    parser.add_argument("--negatives", type=int, default=7, metavar="K")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--way", choices=list(WAYS), help="run this one, here, and print JSON")
    options = parser.parse_args(arguments)
    if min(options.pairs, options.repeats) < 1 or options.negatives < 0:
        parser.error("--pairs and --repeats must be at least 1, --negatives at least 0")
    if options.way:
        print(json.dumps(run(options.way, options.pairs, options.negatives)))
        return 0
    print(LINE.format("", "seconds", "peak, MB", "loss"))
    for _ in range(options.repeats):
        results = {}
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.contrastive.cpu", "--way", way]
            command += ["--pairs", str(options.pairs), "--negatives", str(options.negatives)]
            results[way] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
            found = results[way]
            line = LINE.format(
                way, f"{found['seconds']:.1f}", f"{found['peak_bytes'] / 1e6:.0f}", f"{found['loss']:.4f}"
            )
            print(line, flush=True)
        first, second = (results[way] for way in WAYS)
        times, peaks = second["seconds"] / first["seconds"], first["peak_bytes"] / max(1, second["peak_bytes"])
        print(f"{times:.2f} times as fast, with {peaks:.3f} of the memory", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
