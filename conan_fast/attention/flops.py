"""FLOP formulas of soft-masked attention for torch.utils.flop_counter, which counts SDPA in the same way.

Counted are the GEMMs, as if without a mask whatever alpha is: 2 in the forward pass. In the backward pass the scores
are recomputed; dQ, dK and dV take one GEMM each, and dQ and dK the gradient of the weights before: 5 for all three.
A packed batch counts the lengths of its sequences; where their values are not at hand (under FakeTensorMode), each of
them counts as max_seqlen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor


def _gemm(q: Tensor, cu_seqlens: Tensor | None, max_seqlen: int) -> int:
    """FLOP of one GEMM of all sequences and heads, such as that of the scores."""
    *batch, tokens, heads, head_dim = q.shape
    if cu_seqlens is None:
        pairs = batch[0] * tokens**2
    elif isinstance(cu_seqlens, (FakeTensor, FunctionalTensor)) or cu_seqlens.device.type == "meta":
        pairs = (len(cu_seqlens) - 1) * max_seqlen**2
    else:
        pairs = sum(length**2 for length in cu_seqlens.diff().tolist())
    return 2 * heads * head_dim * pairs


def forward(q: Tensor, k: Tensor, v: Tensor, *settings: Any, out_val: Any = None) -> int:
    return 2 * _gemm(q, settings[0], settings[3])


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    needed: Sequence[bool],
    *settings: Any,
    out_val: Any = None,
) -> int:
    need_dq, need_dk, need_dv = needed
    gemms = 1 + (need_dq or need_dk) + need_dq + need_dk + need_dv
    return gemms * _gemm(q, settings[0], settings[3])
