"""Packed against padded attention on a CPU: pytest benchmarks/test_packing.py

Work: 4 l^2 D FLOP forward and 10 l^2 D backward a head for a sequence of length l; padding pays the longest l for all.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from conan_fast import soft_mask, soft_mask_attention_varlen

HEADS, KV_HEADS, HEAD_DIM, ALPHA = 4, 2, 64, 0.3
LENGTHS = torch.linspace(5, 128, 256).int()
TOTAL, LONGEST = int(LENGTHS.sum()), int(LENGTHS.max())
CU_SEQLENS = torch.nn.functional.pad(LENGTHS.cumsum(0, dtype=torch.int32), (1, 0))


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
