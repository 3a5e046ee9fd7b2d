"""InfoNCE with seven Matryoshka dims: one pass against once per dim.

Run: pytest benchmarks/test_contrastive.py. `python -m benchmarks run --suite contrastive` measures all shapes and peers
side by side. Work: three products of 2 N M D FLOP (scores and two gradients) for all dims together; once per dim it is
three times the sum of the dims instead of the largest, here 3.75 times as much.
"""

from typing import Any

import pytest
import torch

from benchmarks import machine, timing
from benchmarks.contrastive.cases import Case
from benchmarks.contrastive.implementation import ContrastiveImplementation
from benchmarks.contrastive.shape import DTYPES, Shape, matryoshka
from benchmarks.contrastive.suite import SUITE
from benchmarks.labels import label
from benchmarks.peer import NotRun, leaves_out

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPE = Shape({"cuda": 1024, "cpu": 256}[DEVICE.type], 7, 1024, matryoshka(1024), DTYPES[DEVICE.type].itemsize)
CLOCK = timing.Clock(DEVICE)
SHOWN = [
    implementation for implementation in SUITE.implementations if implementation.name in ("ours", "eager", "st_mnrl")
]


@pytest.fixture(scope="module")
def case() -> Case:
    return Case(SHAPE, DEVICE)


@pytest.mark.benchmark(group=f"InfoNCE forward + backward, {label('contrastive', vars(SHAPE))}", timer=CLOCK)
@pytest.mark.parametrize("implementation", SHOWN, ids=lambda implementation: implementation.name)
def test_info_nce(benchmark: Any, case: Case, implementation: ContrastiveImplementation) -> None:
    try:
        with leaves_out(DEVICE, implementation.bytes_needed(SHAPE), ours=implementation.role == "ours"):
            prepared = case.prepare(implementation)
            step = prepared.step("both")
            seconds = timing.warm_up(step, CLOCK)
    except NotRun as reason:
        pytest.skip(str(reason))
    benchmark.pedantic(step, setup=CLOCK.prepare, rounds=max(5, min(200, round(0.2 / seconds))))
    benchmark.extra_info |= {"relative_errors": prepared.errors, "peak_bytes": prepared.peak_bytes}
    benchmark.extra_info |= {"machine": machine.facts(DEVICE)}
