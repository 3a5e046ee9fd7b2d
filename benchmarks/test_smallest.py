"""The smallest case of each suite under pytest-benchmark: pytest benchmarks -n0

`python -m benchmarks run` measures all cases, ours and the peers in the same rounds; here they run one after another.
"""

from functools import cache
from typing import Any

import pytest
import torch

from benchmarks import machine, result, timing
from benchmarks.suite import SUITES, Implementation, NotRun, guarded, load_suite

CLOCK = timing.Clock(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
ALL = [(suite, part, i) for suite in map(load_suite, SUITES) for i in suite.implementations for part in suite.parts]


@cache
def smallest(name: str) -> tuple[Any, Any]:
    """The case with the fewest FLOP, and its workload."""
    suite = load_suite(name)
    case = min(suite.cases(CLOCK.device.type), key=lambda case: case.work(suite.parts[0]).flop)
    return case, suite.workload(case, CLOCK.device)


@pytest.mark.benchmark(timer=lambda: CLOCK.total)
@pytest.mark.parametrize(("suite", "part", "implementation"), ALL, ids=lambda x: x if isinstance(x, str) else x.name)
def test_smallest_case(benchmark: Any, suite: Any, part: str, implementation: Implementation) -> None:
    case, workload = smallest(suite.name)
    try:
        with guarded(CLOCK.device, implementation, implementation.bytes_needed(case)):
            checked = workload.check(implementation)
            step = checked.step(part)
            seconds = timing.warm_up(step, CLOCK)
    except NotRun as reason:
        pytest.skip(str(reason))
    benchmark.group = f"{suite.name} {part}, {result.label(suite.name, vars(case))}"
    benchmark.pedantic(CLOCK.once, args=(step,), rounds=max(5, min(200, round(0.2 / max(seconds, 1e-6)))))
    benchmark.extra_info |= {"relative_errors": checked.errors, "peak_bytes": checked.peak_bytes}
    benchmark.extra_info |= {"machine": machine.facts(CLOCK.device)}
