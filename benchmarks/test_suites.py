"""The smallest case of each suite under pytest-benchmark: pytest benchmarks

`python -m benchmarks run` measures all cases, ours and its peers in the same rounds; here they come one after another.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from benchmarks import machine, suites, timing
from benchmarks.labels import label
from benchmarks.peer import Implementation, NotRun, leaves_out
from benchmarks.suite import Shape

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CLOCK = timing.Clock(DEVICE)
ALL = [
    (name, part, i)
    for name in suites.NAMES
    for i in suites.load(name).implementations
    for part in suites.load(name).parts
]


def smallest(name: str) -> Shape:
    suite = suites.load(name)
    return min(suite.shapes(DEVICE.type), key=lambda shape: shape.work(suite.parts[0]).flop)


@cache
def case_of(name: str) -> Any:
    return suites.load(name).case(smallest(name), DEVICE)


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize(("name", "part", "implementation"), ALL, ids=lambda x: x if isinstance(x, str) else x.name)
def test_smallest_case(benchmark: Any, name: str, part: str, implementation: Implementation) -> None:
    shape, case = smallest(name), case_of(name)
    try:
        with leaves_out(DEVICE, implementation.bytes_needed(shape), ours=implementation.role == "ours"):
            prepared = case.prepare(implementation)  # a wrong result has no time: WrongResult
            step = prepared.step(part)
            seconds = timing.warm_up(step, CLOCK)
    except NotRun as reason:
        pytest.skip(str(reason))
    benchmark.group = f"{name} {part}, {label(name, vars(shape))}"
    benchmark.pedantic(step, setup=CLOCK.prepare, rounds=max(5, min(200, round(0.2 / seconds))))
    benchmark.extra_info |= {"relative_errors": prepared.errors, "peak_bytes": prepared.peak_bytes}
    benchmark.extra_info |= {"machine": machine.facts(DEVICE)}
