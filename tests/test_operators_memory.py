"""Peak memory of the operators, each measured in a new process."""

import json
import subprocess
import sys

import pytest

# Runs `work` on small inputs first, because libraries load and allocate memory in the first call.
MEASURE = """
import json, resource, torch
from conan_fast import info_nce, soft_mask_attention_varlen
torch.manual_seed(0)
def attention(q, k, v):
    length = torch.tensor([0, len(q)], dtype=torch.int32)
    soft_mask_attention_varlen(q, k, v, length, len(q), 0.5).sum().backward()
def contrastive(queries, positives):
    info_nce(queries, positives).loss.backward()
work, shapes = {work}, {shapes}
work(*(torch.randn(64, *shape, requires_grad=True) for shape in shapes))
inputs = [torch.randn({rows}, *shape, requires_grad=True) for shape in shapes]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
work(*inputs)
print(json.dumps(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)))
"""


def peak_above_inputs(work, shapes, rows):
    command = [sys.executable, "-c", MEASURE.format(work=work, shapes=shapes, rows=rows)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_attention_at_4096_is_below_one_score_matrix():
    """The score matrices of the 4 heads take 268 MB. Forward and backward take less than the 67 MB of one head."""
    assert peak_above_inputs("attention", [(4, 16), (2, 16), (2, 16)], 4096) < 4 * 4096**2


def test_info_nce_at_4096_is_below_two_score_matrices():
    """One score matrix takes 67 MB, a chunk of 1,024 rows a quarter of that, the gradients 8 MB."""
    assert peak_above_inputs("contrastive", [(256,)] * 2, 4096) < 2 * 4 * 4096**2


@pytest.mark.proof
def test_info_nce_at_32768_is_below_one_gigabyte():
    """Forward and backward at N = M = 32,768, D = 256 in float32; one score matrix alone would be 4.3 GB."""
    assert peak_above_inputs("contrastive", [(256,)] * 2, 32768) < 10**9
