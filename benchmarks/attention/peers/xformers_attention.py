"""xformers' memory_efficient_attention: without a mask, as a bound, and with the dense one, as a rival.

0.0.35 brings no kernel of its own: it calls FlashAttention 3 or 2, and with a mask torch's memory-efficient kernel.
k and v are expanded: its shared heads have no backward pass. Not yet run on a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from benchmarks.attention.implementation import Attention, AttentionImplementation, Build, expanded
from benchmarks.attention.peers.eager import dense_bias
from benchmarks.attention.shape import Shape

ALIGNMENT = 8  # of the rows of a mask, in numbers


def _build(dense_mask: bool) -> Build:
    def build(shape: Shape, device: torch.device) -> Attention:
        from xformers.ops import memory_efficient_attention

        bias = _aligned_bias(shape, device) if dense_mask else None

        def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            k, v = (expanded(x, shape.heads).transpose(1, 2) for x in (k, v))
            return memory_efficient_attention(q, k, v, attn_bias=bias)

        return attention

    return build


def _aligned_bias(shape: Shape, device: torch.device) -> Tensor:
    """[B, H, L, L], one L x L in memory."""
    bias = pad(dense_bias(shape, device), (0, -shape.length % ALIGNMENT))[:, : shape.length]
    return bias.expand(shape.batch, shape.heads, -1, -1)


IMPLEMENTATIONS = (
    AttentionImplementation(
        name="xformers_unmasked",
        role="bound",
        about="xformers, no mask: FlashAttention-3 where it is installed, else 2",
        build=_build(dense_mask=False),
        alpha=1.0,
    ),
    AttentionImplementation(
        name="xformers_dense_mask",
        role="rival",
        about="xformers, with the soft mask as an L x L bias: torch's memory-efficient kernel",
        build=_build(dense_mask=True),
        dense_mask=True,
    ),
)
