"""InfoNCE with seven Matryoshka dims: one pass against once per dim. Run: pytest benchmarks/test_contrastive.py

Work: three products of 2 N M D FLOP (scores and two gradients) for all dims together; once per dim it is three times
the sum of the dims instead of the largest, here 3.75 times as much. `python -m benchmarks.contrastive` has more shapes
and peers.
"""

from typing import Any

import pytest
import torch

from benchmarks import timing
from benchmarks.contrastive import matryoshka
from benchmarks.contrastive_cases import IMPLEMENTATIONS, Case, Implementation, Shape
from benchmarks.runner import NotRun

SHAPE = Shape(1024, 7, 1024, matryoshka(1024))
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CLOCK = timing.Clock(DEVICE)
SHOWN = [implementation for implementation in IMPLEMENTATIONS if implementation.name in ("ours", "eager", "st_mnrl")]


@pytest.fixture(scope="module")
def case() -> Case:
    return Case(SHAPE, DEVICE)


@pytest.mark.benchmark(group=f"InfoNCE forward + backward, {SHAPE}", timer=CLOCK)
@pytest.mark.parametrize("implementation", SHOWN, ids=lambda implementation: implementation.name)
def test_info_nce(benchmark: Any, case: Case, implementation: Implementation) -> None:
    try:
        prepared = case.prepare(implementation)
    except NotRun as reason:
        pytest.skip(str(reason))
    benchmark.pedantic(prepared.step, setup=CLOCK.prepare, rounds=timing.warm_up(prepared.step, CLOCK))
    benchmark.extra_info |= {"relative_errors": prepared.errors, "peak_bytes": prepared.peak_bytes}
