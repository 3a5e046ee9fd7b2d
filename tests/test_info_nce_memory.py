"""Peak memory of InfoNCE, in a process of its own so that nothing else is in the high-water mark."""

import json
import subprocess
import sys

import pytest

MEASURE = """
import json, resource, torch, conan_fast
torch.manual_seed(0)
small = [torch.randn(64, 256, requires_grad=True) for _ in range(2)]
conan_fast.info_nce(*small).loss.backward()  # libraries load and set up their own memory
inputs = [torch.randn({rows}, 256, requires_grad=True) for _ in range(2)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
conan_fast.info_nce(*inputs).loss.backward()
print(json.dumps(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)))
"""


def peak_above_inputs(rows):
    command = [sys.executable, "-c", MEASURE.format(rows=rows)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_peak_at_4096_is_below_two_score_matrices():
    """67 MB is one score matrix; the gradients are 8 MB, and ours must hold no second copy of the scores."""
    assert peak_above_inputs(4096) < 2 * 4 * 4096**2


@pytest.mark.slow
def test_peak_at_32768_is_below_one_gigabyte():
    """Forward and backward at N = M = 32,768, D = 256 in float32; one score matrix alone would be 4.3 GB."""
    assert peak_above_inputs(32768) < 10**9
