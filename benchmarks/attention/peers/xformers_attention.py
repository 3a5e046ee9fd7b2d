"""xformers' memory_efficient_attention: without a mask, as a bound, and with the dense one, as a rival.

0.0.35 has no kernel of its own: it calls FlashAttention 3 or 2, and with a mask torch's memory-efficient kernel.
k and v are expanded: its shared heads have no backward pass. Not yet run on a GPU.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from benchmarks.attention.cases import Attention, AttentionImplementation, Case, expanded
from benchmarks.attention.peers.eager import dense_bias

ALIGNMENT = 8  # of the rows of a mask, in elements


def _build(dense_mask: bool, case: Case, device: torch.device) -> Attention:
    from xformers.ops import memory_efficient_attention

    bias = None
    if dense_mask:  # [B, H, L, L], one L x L in memory, with aligned rows
        aligned = pad(dense_bias(case, device), (0, -case.length % ALIGNMENT))[:, : case.length]
        bias = aligned.expand(case.batch, case.heads, -1, -1)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (expanded(x, case.heads).transpose(1, 2) for x in (k, v))
        return memory_efficient_attention(q, k, v, attn_bias=bias)

    return attention


UNMASKED = "xformers, no mask: FlashAttention-3 where it is installed, else 2"
MASKED = "xformers, with the soft mask as an L x L bias: torch's memory-efficient kernel"
IMPLEMENTATIONS = (
    AttentionImplementation("xformers_unmasked", "bound", UNMASKED, partial(_build, False), alpha=1.0),
    AttentionImplementation("xformers_dense_mask", "rival", MASKED, partial(_build, True), dense_mask=True),
)
