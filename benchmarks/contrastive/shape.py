"""What is measured: N pairs, K hard negatives for each, which all queries share, and Matryoshka dims up to D."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.floors import Work, info_nce_work

DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}
PAIRS = {"cuda": (1024, 4096, 16384, 65536), "cpu": (1024, 256)}
DIMS = {"cuda": (1024, 3584), "cpu": (1024,)}
NEGATIVES = {"cuda": (0, 7), "cpu": (0, 3)}
PAPER = {3584: (256, 512, 1024, 1536, 2048, 3072, 3584)}
EIGHTHS = (1, 2, 3, 4, 5, 7, 8)


@dataclass(frozen=True)
class Shape:
    """N queries and positives, K hard negatives for each, which are shared: M = N (1 + K) candidates."""

    pairs: int
    negatives: int
    dim: int
    dims: tuple[int, ...]
    element_size: int = 2

    @property
    def candidates(self) -> int:
        return self.pairs * (1 + self.negatives)

    def work(self, _: str = "both") -> Work:
        return info_nce_work(pairs=self.pairs, candidates=self.candidates, dim=self.dim, element_size=self.element_size)


def matryoshka(dim: int) -> tuple[int, ...]:
    """The paper's seven dims for its 3,584, else seven eighths."""
    return PAPER.get(dim) or tuple(sorted({max(1, dim * part // 8) for part in EIGHTHS}))


def shapes(
    device_type: str,
    pairs: Sequence[int] | None = None,
    negatives: Sequence[int] | None = None,
    dims: Sequence[int] | None = None,
) -> list[Shape]:
    """First N = 16,384 (CPU: 1,024), the largest D, seven dims; then what differs from it in fewer of the three."""
    dims, size = dims or DIMS[device_type], DTYPES[device_type].itemsize
    telling = {"cuda": 16384, "cpu": 1024}[device_type]
    found = []
    for count, dim, hard in itertools.product(
        pairs or PAIRS[device_type], dims, sorted(negatives or NEGATIVES[device_type])
    ):
        for prefixes in dict.fromkeys((matryoshka(dim), (dim,))):
            distance = abs(math.log(count / telling, 4)) + (dim != max(dims)) + (len(prefixes) == 1)
            found.append((distance, Shape(count, hard, dim, prefixes, size)))
    return [shape for _, shape in sorted(found, key=lambda pair: (pair[0], pair[1].negatives, -pair[1].pairs))]
