"""torch's scaled_dot_product_attention: each kernel without a mask, as a bound, and with the dense one, as a rival.

With the mask k and v are expanded: not all kernels take shared heads then.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.attention.implementation import Attention, AttentionImplementation, Build, expanded
from benchmarks.attention.peers.eager import dense_bias
from benchmarks.attention.shape import ALPHA, Shape
from benchmarks.peer import NotRun

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def _build(kernel: SDPBackend, dense_mask: bool) -> Build:
    def build(shape: Shape, device: torch.device) -> Attention:
        if device.type == "cpu" and kernel is not SDPBackend.FLASH_ATTENTION:
            raise NotRun("has a CUDA kernel only")
        if device.type == "cuda" and kernel is SDPBackend.FLASH_ATTENTION and dense_mask:
            raise NotRun("takes no mask")
        bias = dense_bias(shape, device) if dense_mask else None
        # The memory-efficient kernel never shares heads; torch's CPU kernel is named "flash" and takes a mask.
        expand = dense_mask or kernel is SDPBackend.EFFICIENT_ATTENTION

        def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            k, v = (expanded(x, shape.heads) if expand else x.transpose(1, 2) for x in (k, v))
            with sdpa_kernel(kernel):
                out = scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=bias, enable_gqa=not expand)
            return out.transpose(1, 2)

        return attention

    return build


IMPLEMENTATIONS = (
    *(
        AttentionImplementation(
            name=f"sdpa_{name}_unmasked",
            role="bound",
            about=f"torch's SDPA, {name} kernel, no mask",
            build=_build(kernel, False),
            alpha=1.0,
        )
        for name, kernel in KERNELS.items()
    ),
    *(
        AttentionImplementation(
            name=f"sdpa_{name}_dense_mask",
            role="rival",
            about=f"torch's SDPA, {name} kernel, with the soft mask as an L x L bias",
            build=_build(kernel, True),
            alpha=ALPHA,
            dense_mask=True,
        )
        for name, kernel in KERNELS.items()
    ),
)
