"""Inputs of attention, its output and gradients, and torch's attention beside it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from conan_fast import soft_mask


def random_qkv(
    *tokens: int,
    heads: tuple[int, int] = (4, 2),
    size: int = 8,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    seed: int = 0,
) -> list[Tensor]:
    """Random q [*tokens, heads[0], size], k and v [*tokens, heads[1], size] that require gradients."""
    generator, wide = torch.Generator().manual_seed(seed), torch.promote_types(dtype, torch.float32)
    return [
        torch.randn(*tokens, count, size, generator=generator, dtype=wide).to(device, dtype).requires_grad_()
        for count in (heads[0], heads[1], heads[1])
    ]


def offsets(lengths: Sequence[int], device: str = "cpu") -> Tensor:
    """cu_seqlens of sequences of these lengths: int32 [len(lengths) + 1]."""
    return torch.tensor([0, *lengths]).cumsum(0).int().to(device)


def value_and_grads(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The output, and the gradients of its dot product with a fixed random tensor, all detached."""
    out = function(*inputs)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.device, inputs[0].dtype)
    return [x.detach() for x in (out, *torch.autograd.grad(out, inputs, weight.to(out.dtype)))]


def sdpa_varlen(
    q: Tensor, k: Tensor, v: Tensor, lengths: list[int], alpha: float, saturation: str, scale: float
) -> Tensor:
    """torch's attention with the dense mask, one sequence after another: q [T, Hq, D], k and v [T, Hkv, D]."""
    # These kernels compute in 16 bits as ours do. MATH computes in float32 and rounds at the end.
    exact = q.dtype == torch.float64
    kernels = [SDPBackend.MATH] if exact else [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    outs = []
    for a, b, c in zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True):
        if len(a) == 0:
            outs.append(a)
            continue
        # With 16-bit inputs, torch wants a float32 mask on a CPU and a mask of their dtype on a GPU.
        dtype = torch.float32 if q.device.type == "cpu" and not exact else q.dtype
        mask = soft_mask(len(a), alpha, saturation, device=q.device).log().to(dtype)
        rows = [x.transpose(0, 1)[None].repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (a, b, c)]
        with sdpa_kernel(kernels):
            out = scaled_dot_product_attention(*rows, attn_mask=mask, scale=scale)
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)


def assert_as_exact_as_torch(ours: list[Tensor], theirs: list[Tensor], exact: list[Tensor]) -> None:
    """Relative error (Frobenius) against float64 on the same inputs at most 1.1 times torch's, for out, dq, dk, dv.

    The slack is a hundredth of the dtype's machine epsilon. dq and dk are differences of elements as large as dv's.
    They vanish for sequences of one token, where both results are rounding errors.
    """
    slack = 0.01 * torch.finfo(ours[0].dtype).eps
    for index, (mine, other, truth) in enumerate(zip(ours, theirs, exact, strict=True)):
        size = truth.norm() if index == 0 else torch.maximum(truth.norm(), exact[3].norm())
        error, allowed = (mine - truth).norm(), 1.1 * (other - truth).norm() + slack * size
        assert error <= allowed, f"{('out', 'dq', 'dk', 'dv')[index]}: error {error / size}, allowed {allowed / size}"
