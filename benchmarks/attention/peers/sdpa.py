"""torch's scaled_dot_product_attention: each kernel without a mask, as a bound, and with the dense one, as a rival.

With the mask k and v are expanded: not all kernels support shared heads then.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.attention.cases import ALPHA, Attention, AttentionImplementation, Case, expanded
from benchmarks.attention.peers.eager import dense_bias
from benchmarks.suite import NotRun
from conan_fast import soft_mask

KERNELS = {name: getattr(SDPBackend, f"{name.upper()}_ATTENTION") for name in ("flash", "cudnn", "efficient")}


def _build(kernel: SDPBackend, dense_mask: bool, case: Case, device: torch.device) -> Attention:
    if device.type == "cpu" and kernel is not SDPBackend.FLASH_ATTENTION:
        raise NotRun("has a CUDA kernel only")
    if device.type == "cuda" and kernel is SDPBackend.FLASH_ATTENTION and dense_mask:
        raise NotRun("does not support a mask")
    bias = dense_bias(case, device) if dense_mask else None
    # The memory-efficient kernel never shares heads; torch's CPU kernel is named "flash" and supports a mask.
    expand = dense_mask or kernel is SDPBackend.EFFICIENT_ATTENTION

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (expanded(x, case.heads) if expand else x.transpose(1, 2) for x in (k, v))
        with sdpa_kernel(kernel):
            out = scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=bias, enable_gqa=not expand)
        return out.transpose(1, 2)

    return attention


def _padded(case: Case, device: torch.device) -> Attention:
    """Of a packed batch. Padding, removing it and making the mask are part of the measured work."""
    lengths = torch.tensor(case.lengths, device=device)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        tokens = torch.arange(case.length, device=device) < lengths[:, None]
        mask = torch.zeros(case.batch, 1, case.length, case.length, device=device)
        for row, length in enumerate(case.lengths):
            mask[row, 0, :length, :length] = soft_mask(length, ALPHA, device=device)
            mask[row, 0, length:, 0] = 1  # a row without any key would be NaN

        def pad(x: Tensor) -> Tensor:
            return x.new_zeros(*tokens.shape, *x.shape[1:]).index_put((tokens,), x).transpose(1, 2)

        bias = mask.log().to(q.dtype)
        out = scaled_dot_product_attention(pad(q), pad(k), pad(v), attn_mask=bias, enable_gqa=True)
        return out.transpose(1, 2)[tokens]

    return attention


PADDED = "torch's SDPA on a padded copy of a packed batch"
MASKED = "with the soft mask as an L x L bias"
IMPLEMENTATIONS = (
    *(
        AttentionImplementation(
            f"sdpa_{name}_{'dense_mask' if masked else 'unmasked'}",
            "rival" if masked else "bound",
            f"torch's SDPA, {name} kernel, {MASKED if masked else 'no mask'}",
            partial(_build, kernel, masked),
            alpha=ALPHA if masked else 1.0,
            dense_mask=masked,
        )
        for masked in (False, True)
        for name, kernel in KERNELS.items()
    ),
    AttentionImplementation("sdpa_padded", "rival", PADDED, _padded, layouts=("packed",)),
)
