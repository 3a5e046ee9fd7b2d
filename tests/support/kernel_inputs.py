"""What the tests of the kernels share: inputs of attention, errors against float64 beside torch's, poisoned memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from conan_fast import _native, soft_mask

# One below, at and above everything that the kernels count in: 8, 16, 32, 64 and 128 rows.
LENGTHS = [0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 95, 127, 128, 129, 191, 193]
SHARED_MEMORY = {"Hopper": 227 * 1024, "8.0": 163 * 1024, "8.6": 99 * 1024}  # bytes that a block can have


def random_qkv(*tokens: int, heads: tuple[int, int], size: int, dtype: torch.dtype, device: str, seed: int = 0):
    """q, k, v of random numbers that need gradients: [*tokens, heads, size]."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(*tokens, count, size, generator=generator).to(device, dtype).requires_grad_()
        for count in (heads[0], heads[1], heads[1])
    ]


def value_and_grads(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """The output and the gradients of its product with a fixed random tensor, all detached."""
    out = function(*inputs)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.device, inputs[0].dtype)
    return [x.detach() for x in (out, *torch.autograd.grad(out, inputs, weight.to(out.dtype)))]


def sdpa_varlen(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], alpha: float, saturation: str, scale: float):
    """torch's attention with the dense mask, one sequence after another: q [T, Hq, D], k and v [T, Hkv, D]."""
    # The kernels that compute in 16 bits as ours do; the fallback, MATH, computes in float32 and rounds at the end.
    exact = q.dtype == torch.float64
    kernels = [SDPBackend.MATH] if exact else [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    outs = []
    for a, b, c in zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True):
        if len(a) == 0:
            outs.append(a)
            continue
        # On a CPU torch takes a float32 mask with 16-bit inputs, on a GPU it wants the dtype of the inputs.
        dtype = torch.float32 if q.device.type == "cpu" and not exact else q.dtype
        mask = soft_mask(len(a), alpha, saturation, device=q.device).log().to(dtype)
        rows = [x.transpose(0, 1)[None].repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (a, b, c)]
        with sdpa_kernel(kernels):
            out = scaled_dot_product_attention(*rows, attn_mask=mask, scale=scale)
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)


def assert_as_exact_as_torch(ours: list[Tensor], theirs: list[Tensor], exact: list[Tensor]) -> None:
    """Relative error (Frobenius) against float64 on the same inputs at most 1.1 times torch's, for out, dq, dk, dv.

    The slack is a hundredth of the dtype's last place; dq and dk are differences of numbers of dv's size, and where
    nothing is left of them (sequences of one token) both results are rounding errors.
    """
    slack = 0.01 * torch.finfo(ours[0].dtype).eps
    for index, (mine, other, truth) in enumerate(zip(ours, theirs, exact, strict=True)):
        size = truth.norm() if index == 0 else torch.maximum(truth.norm(), exact[3].norm())
        error, allowed = (mine - truth).norm(), 1.1 * (other - truth).norm() + slack * size
        assert error <= allowed, f"{('out', 'dq', 'dk', 'dv')[index]}: {error / size} where {allowed / size} is allowed"


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """New memory from torch.empty holds NaN, or the lowest integer: what a kernel leaves unwritten shows."""
    empty = torch.empty

    def poisoned(*arguments: object, **options: object) -> Tensor:
        out: Tensor = empty(*arguments, **options)
        return out.fill_(torch.nan if out.dtype.is_floating_point else torch.iinfo(out.dtype).min)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", poisoned)
        yield


@contextmanager
def chip(backend: str, name: str, seed: int = 0) -> Iterator[None]:
    """The emulated chip's shared memory and the seed of its scheduling; a real one is as it is."""
    if backend != "emulated":
        yield
        return
    module = _native.module("emulated")
    module.set_shared_memory_limit(SHARED_MEMORY[name])
    module.set_seed(seed)
    try:
        yield
    finally:
        module.set_shared_memory_limit(SHARED_MEMORY["Hopper"])
        module.set_seed(0)
