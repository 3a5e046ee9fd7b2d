"""Attention as others compute it and as we do, on the same inputs, checked against float64 before any time is taken.

With B sequences of length L and H heads of size D, 4 B H L^2 D FLOP forward and 10 B H L^2 D backward are useful work
in every implementation: what one recomputes or pads does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks import timing
from benchmarks.runner import WrongResult, leaves_out, peak_of_quick
from conan_fast import build_info, soft_mask, soft_mask_attention

ALPHA = 0.3
TOLERANCE, OUR_TOLERANCE = 0.02, 0.005  # relative (Frobenius) error of a head; bfloat16 numbers are off by 0.002
CHECKED_HEADS = 4  # pairs of sequence and key/value head that are compared with float64
MAX_SECONDS = 3.0  # forward and backward together
FLOP = {"forward": 4, "backward": 10}  # times B H L^2 D

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # q [B, L, H, D], k and v [B, L, Hkv, D] -> [B, L, H, D]


@dataclass(frozen=True)
class Shape:
    batch: int
    length: int
    head_dim: int
    heads: int = 32
    kv_heads: int = 8

    def flop(self, direction: str) -> int:
        return FLOP[direction] * self.batch * self.heads * self.length**2 * self.head_dim

    def __str__(self) -> str:
        return f"L={self.length} D={self.head_dim} B={self.batch}"


Build = Callable[[Shape, torch.device], Attention]  # what it makes, such as a mask, costs memory but no time


@dataclass(frozen=True)
class Implementation:
    """alpha: of the soft mask, 1 is no mask. squares: bfloat16 tensors [B, H, L, L] that it holds at once."""

    name: str
    build: Build
    alpha: float = ALPHA
    squares: int = 0
    dense_mask: bool = False
    tolerance: float = TOLERANCE

    def bytes_needed(self, shape: Shape) -> int:
        """About what it allocates; the dense mask is first made in float32."""
        row = 8 * shape.head_dim + self.squares * shape.length
        return 2 * shape.batch * shape.heads * shape.length * row + 16 * shape.length**2 * self.dense_mask


def our_backend(device: torch.device) -> str:
    return "cuda" if device.type == "cuda" and "cuda" in build_info()["available_backends"] else "torch"


def _ours(deterministic: bool) -> Build:
    def build(_: Shape, device: torch.device) -> Attention:
        backend = our_backend(device)
        return lambda q, k, v: soft_mask_attention(q, k, v, ALPHA, deterministic=deterministic, backend=backend)

    return build


def _bias(shape: Shape, device: torch.device) -> Tensor:
    return soft_mask(shape.length, ALPHA, device=device).log_().bfloat16()


def _expand(x: Tensor, heads: int) -> Tensor:
    """[B, L, Hkv, D] -> [B, H, L, D]: copies each key/value head for the query heads that share it."""
    return x.repeat_interleave(heads // x.shape[2], dim=2).transpose(1, 2)


def _eager(shape: Shape, device: torch.device) -> Attention:
    """The definition in bfloat16; expands k and v."""
    bias = _bias(shape, device)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q.transpose(1, 2) @ _expand(k, shape.heads).mT * shape.head_dim**-0.5 + bias
        return (scores.softmax(-1) @ _expand(v, shape.heads)).transpose(1, 2)

    return attention


def _sdpa(kernels: Sequence[SDPBackend], dense_mask: bool) -> Build:
    """Of `kernels` the one that torch prefers. With the mask k and v are expanded: not all take shared heads then."""

    def build(shape: Shape, device: torch.device) -> Attention:
        bias = _bias(shape, device) if dense_mask else None

        def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            k, v = (_expand(x, shape.heads) if dense_mask else x.transpose(1, 2) for x in (k, v))
            with sdpa_kernel(list(kernels)):
                out = scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=bias, enable_gqa=not dense_mask)
            return out.transpose(1, 2)

        return attention

    return build


_FLASH, _CUDNN, _EFFICIENT = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION
FLASH = Implementation("sdpa_flash_unmasked", _sdpa([_FLASH], False), alpha=1.0)
OURS = (
    Implementation("ours", _ours(False), tolerance=OUR_TOLERANCE),
    Implementation("ours_deterministic", _ours(True), tolerance=OUR_TOLERANCE),
)
IMPLEMENTATIONS = (
    FLASH,
    *OURS,
    Implementation("sdpa_cudnn_unmasked", _sdpa([_CUDNN], False), alpha=1.0),
    Implementation("sdpa_dense_mask", _sdpa([_FLASH, _CUDNN, _EFFICIENT], True), dense_mask=True),
    Implementation("eager", _eager, squares=4, dense_mask=True),
)


@dataclass(frozen=True)
class Prepared:
    """An implementation whose results are right.

    peak_bytes: of forward and backward, above the inputs; None on a CPU. errors: the largest of any checked head.
    """

    attention: Attention
    case: Case
    peak_bytes: int | None
    errors: dict[str, float]

    def step(self, direction: str) -> timing.Step:
        """One pass; for "backward" the forward pass is run here, once."""
        inputs, grad_out = self.case.inputs, self.case.grad_out
        out = self.attention(*inputs) if direction == "backward" else None

        def step() -> None:
            if out is None:
                self.attention(*inputs)
            else:
                torch.autograd.grad(out, inputs, grad_out, retain_graph=True)

        return step


class Case:
    """Random bfloat16 inputs of a shape, and what float64 makes of them."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape, self.device = shape, device
        generator = torch.Generator(device).manual_seed(0)
        *self.inputs, self.grad_out = (
            torch.randn(shape.batch, shape.length, heads, shape.head_dim, device=device, generator=generator).bfloat16()
            for heads in (shape.heads, shape.kv_heads, shape.kv_heads, shape.heads)
        )
        for x in self.inputs:
            x.requires_grad_()
        pairs = shape.batch * shape.kv_heads
        chosen = torch.linspace(0, pairs - 1, min(pairs, CHECKED_HEADS)).round().int().tolist()
        self._checked = [divmod(pair, shape.kv_heads) for pair in chosen]
        self._expected: dict[float, list[list[Tensor]]] = {}

    def prepare(self, implementation: Implementation) -> Prepared:
        """Raises NotRun, or WrongResult."""
        needed = implementation.bytes_needed(self.shape)
        with leaves_out(self.device, needed, ours=implementation in OURS):
            return self._prepare(implementation)

    def _prepare(self, implementation: Implementation) -> Prepared:
        expected = self._expectation(implementation.alpha)
        base = timing.allocated_bytes(self.device)
        attention = implementation.build(self.shape, self.device)

        def step() -> list[Tensor]:
            out = attention(*self.inputs)
            return [out.detach(), *torch.autograd.grad(out, self.inputs, self.grad_out)]

        poison = [torch.full_like(x, torch.nan) for x in (*self.inputs, self.grad_out)]
        del poison  # a GPU's allocator hands it out again: what an implementation never writes shall not look right
        errors = self._errors(implementation, step(), expected)
        peak = peak_of_quick(step, self.device, MAX_SECONDS)
        return Prepared(attention, self, None if peak is None else peak - base, errors)

    def _errors(
        self, implementation: Implementation, results: Sequence[Tensor], expected: Sequence[Sequence[Tensor]]
    ) -> dict[str, float]:
        errors = dict.fromkeys(("out", "dq", "dk", "dv"), 0.0)
        for (batch, kv_head), wanted in zip(self._checked, expected, strict=True):
            for key, got, want in zip(errors, self._head(results, batch, kv_head), wanted, strict=True):
                error = float((got - want).norm() / want.norm())
                if not error <= implementation.tolerance:  # NaN too
                    where = f"sequence {batch}, key/value head {kv_head}"
                    raise WrongResult(f"{key} of {where} is off by {error:.2g} of its norm")
                errors[key] = max(errors[key], error)
        return errors

    def _head(self, tensors: Sequence[Tensor], batch: int, kv_head: int) -> list[Tensor]:
        """float64 [L, 1, D] of tensors with key/value heads, [L, H / Hkv, D] of those with query heads."""
        return [x[batch].unflatten(1, (self.shape.kv_heads, -1))[:, kv_head].double() for x in tensors]

    def _expectation(self, alpha: float) -> list[list[Tensor]]:
        """[out, dq, dk, dv] of each checked head."""
        if alpha not in self._expected:
            tensors = [x.detach() for x in (*self.inputs, self.grad_out)]
            heads = [self._head(tensors, *pair) for pair in self._checked]
            self._expected[alpha] = [float64_attention(*head, alpha=alpha) for head in heads]
        return self._expected[alpha]


def float64_attention(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, *, alpha: float, block_bytes: int = 2**28
) -> list[Tensor]:
    """[out, dq, dk, dv] by the definition, a block of rows at a time; q, grad_out [L, G, D], k, v [L, 1, D]."""
    length, group, head_dim = q.shape
    key = torch.arange(length, device=q.device)
    faded = (alpha * length / (key + 1).double()).clamp(max=1).log()
    out, *grads = (torch.zeros_like(x) for x in (q, q, k, v))
    for rows in key.split(max(1, block_bytes // (8 * group * length))):
        leaves = [x.detach().requires_grad_() for x in (q[rows], k, v)]
        scores = torch.einsum("igd,jhd->gij", leaves[0], leaves[1]) * head_dim**-0.5  # h is 1
        weights = (scores + torch.where(key <= rows[:, None], 0, faded)).softmax(-1)
        block = torch.einsum("gij,jhd->igd", weights, leaves[2])
        out[rows] = block.detach()
        parts = torch.autograd.grad(block, leaves, grad_out[rows])
        for grad, where, part in zip(grads, (rows, key, key), parts, strict=True):
            grad[where] += part
    return [out, *grads]
