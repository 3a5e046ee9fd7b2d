"""Tensors of the same values in other memory layouts."""

import torch
from torch import Tensor


def strided(x: Tensor, layout: str) -> Tensor:
    """The values of x under other strides. Kernels cannot read "every other" and "shifted" in place."""
    if layout == "heads first":
        return x.transpose(-3, -2).contiguous().transpose(-3, -2)
    if layout == "fused":  # with other heads in one tensor
        return torch.cat([x, x], -2)[..., x.shape[-2] :, :]
    if layout == "wide":
        return torch.cat([x, x], -1)[..., : x.shape[-1]]
    if layout == "every other":
        return torch.stack([x, x], -1).flatten(-2)[..., ::2]
    if layout == "shifted":
        return torch.cat([x[..., :1], x], -1)[..., 1:]
    assert layout == "plain"
    return x
