"""Soft-masked attention against its peers on a GPU, and packed against padded on a CPU.

Run: pytest benchmarks/test_attention.py. `python -m benchmarks.attention` measures the same GPU cases as one table.
Work: 4 l^2 D FLOP forward and 10 l^2 D backward a head for a sequence of length l; padding pays the longest l for all.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import machine, timing
from benchmarks.attention import shapes
from benchmarks.attention_cases import FLOP, IMPLEMENTATIONS, Case, Implementation, our_backend
from benchmarks.runner import NotRun
from conan_fast import soft_mask, soft_mask_attention_varlen

HEADS, KV_HEADS, HEAD_DIM, ALPHA = 4, 2, 64, 0.3
LENGTHS = torch.linspace(5, 128, 256).int()
TOTAL, LONGEST = int(LENGTHS.sum()), int(LENGTHS.max())
CU_SEQLENS = torch.nn.functional.pad(LENGTHS.cumsum(0, dtype=torch.int32), (1, 0))
GPU = torch.device("cuda")
GPU_CLOCK = timing.Clock(GPU)


def packed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return soft_mask_attention_varlen(q, k, v, CU_SEQLENS, LONGEST, ALPHA)


def padded_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """SDPA with the dense mask; padding, unpadding and the mask are part of the job."""
    tokens = torch.arange(LONGEST) < LENGTHS[:, None]
    mask = torch.zeros(len(LENGTHS), 1, LONGEST, LONGEST)
    for row, length in enumerate(LENGTHS.tolist()):
        mask[row, 0, :length, :length] = soft_mask(length, ALPHA)
        mask[row, 0, length:, 0] = 1  # a row without any key would be NaN

    def pad(x: Tensor) -> Tensor:
        out = x.new_zeros(len(LENGTHS), LONGEST, *x.shape[1:])
        return out.index_put((tokens,), x).transpose(1, 2)

    out = torch.nn.functional.scaled_dot_product_attention(
        pad(q), pad(k), pad(v), attn_mask=mask.log(), enable_gqa=True
    )
    return out.transpose(1, 2)[tokens]


@pytest.mark.benchmark(group=f"attention forward + backward, {len(LENGTHS)} sequences of 5..{LONGEST} tokens")
@pytest.mark.parametrize("attention", [padded_sdpa, packed], ids=lambda f: f.__name__)
def test_attention(benchmark: Callable[..., object], attention: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(TOTAL, heads, HEAD_DIM, requires_grad=True) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    weight = torch.randn(TOTAL, HEADS, HEAD_DIM)

    def step(function: Callable[[Tensor, Tensor, Tensor], Tensor] = attention) -> list[Tensor]:
        return list(torch.autograd.grad(function(*inputs), inputs, weight))

    for got, want in zip(step(), step(padded_sdpa), strict=True):  # a wrong result has no time
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    benchmark(step)


@pytest.fixture(scope="module", params=shapes("cuda"), ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param, GPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.benchmark(timer=GPU_CLOCK)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda implementation: implementation.name)
@pytest.mark.parametrize("direction", FLOP)
def test_on_gpu(benchmark: Any, case: Case, implementation: Implementation, direction: str) -> None:
    try:
        prepared = case.prepare(implementation)
    except NotRun as reason:
        pytest.skip(str(reason))
    step = prepared.step(direction)
    benchmark.group = f"attention {direction}, {case.shape}"
    benchmark.pedantic(step, setup=GPU_CLOCK.prepare, rounds=timing.warm_up(step, GPU_CLOCK))
    benchmark.extra_info |= {"relative_errors": prepared.errors, "peak_bytes": prepared.peak_bytes}
    benchmark.extra_info |= {"machine": machine.facts(GPU), "our_backend": our_backend(GPU)}
    if benchmark.stats:  # none under --benchmark-disable
        benchmark.extra_info["tflop_per_s"] = case.shape.flop(direction) / benchmark.stats.stats.median / 1e12
