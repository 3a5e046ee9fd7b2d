"""FlexAttention under torch.compile, with the soft mask as its score_mod: nothing L x L in memory.

log M comes from a table of L elements. Computing it would cost as little (Triton does either once for each key of a
tile, not for each score), but alpha would be a constant of the kernel: each step that raises it would compile again.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.attention.cases import ALPHA, Attention, AttentionImplementation, Case
from benchmarks.suite import NotRun

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def key_bias(length: int, alpha: float, device: torch.device) -> Tensor:
    """log M above the diagonal, where it depends on the key alone; float32 [L]."""
    return (alpha * length / torch.arange(1, length + 1, device=device)).clamp(max=1).log()


def score_mod(bias: Tensor) -> ScoreMod:
    """bias: by key_bias."""

    def soft_mask(score: Tensor, _batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return torch.where(key > query, score + bias[key], score)

    return soft_mask


def uncompiled(case: Case, device: torch.device) -> Attention:
    """Computes and keeps all scores."""
    from torch.nn.attention.flex_attention import flex_attention

    soft_mask, options = score_mod(key_bias(case.length, ALPHA, device)), _kernel_options(case.head_dim)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = flex_attention(q, k, v, score_mod=soft_mask, enable_gqa=True, kernel_options=options)
        return out.transpose(1, 2)

    return attention


def _kernel_options(head_dim: int) -> Any:
    options: dict[str, Any] = {"ROWS_GUARANTEED_SAFE": True}  # no row is fully masked
    if head_dim == 112:  # torch has no default tiles for it; these are for 128, which 112 is rounded to
        options |= {"fwd_BLOCK_M": 128, "fwd_BLOCK_N": 64, "fwd_num_stages": 3, "fwd_num_warps": 8}
    return options


def _compiled(case: Case, device: torch.device) -> Attention:
    if device.type == "cpu":
        raise NotRun("FlexAttention has no backward pass on a CPU")
    return torch.compile(uncompiled(case, device), dynamic=False)


ABOUT = "torch's FlexAttention, compiled, the soft mask as score_mod"
IMPLEMENTATIONS = (AttentionImplementation("flex", "rival", ABOUT, _compiled),)
