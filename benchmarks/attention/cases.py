"""Attention on random inputs of a shape, checked against float64 before any time is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor
from torch._functorch import config as functorch_config

from benchmarks import timing
from benchmarks.attention.exact import float64_attention
from benchmarks.attention.implementation import Attention, AttentionImplementation
from benchmarks.attention.peers import ours
from benchmarks.attention.shape import DTYPES, Shape
from benchmarks.peer import WrongResult

# A backward pass is repeated, so what a compiled forward pass saved must outlive it.
functorch_config.donated_buffer = False

FLOAT32_TOLERANCE = 1e-4
CHECKED_HEADS = 4  # pairs of sequence and key/value head that are compared with float64


@dataclass(frozen=True)
class Inputs:
    """leaves: q, k, v."""

    leaves: list[Tensor]
    grad_out: Tensor

    @staticmethod
    def random(shape: Shape, device: torch.device, seed: int) -> Inputs:
        generator = torch.Generator(device).manual_seed(seed)
        *leaves, grad_out = (
            torch.randn(shape.batch, shape.length, heads, shape.head_dim, device=device, generator=generator).to(
                DTYPES[device.type]
            )
            for heads in (shape.heads, shape.kv_heads, shape.kv_heads, shape.heads)
        )
        return Inputs([x.requires_grad_() for x in leaves], grad_out)


@dataclass(frozen=True)
class Prepared:
    """An implementation whose results are right. errors: the largest of any checked head."""

    attention: Attention
    inputs: list[Inputs]
    peak_bytes: int | None
    errors: dict[str, float]

    def step(self, part: str) -> timing.Step:
        """One pass, of the inputs in turn; for "backward" the forward pass of each is run here, once."""
        if part == "forward":
            turns = cycle(self.inputs)
            return lambda: self.attention(*next(turns).leaves)
        graphs = cycle([(self.attention(*x.leaves), x) for x in self.inputs])

        def backward() -> None:
            out, inputs = next(graphs)
            torch.autograd.grad(out, inputs.leaves, inputs.grad_out, retain_graph=True)

        return backward

    def after(self) -> dict[str, Any]:
        return {}


class Case:
    """Random inputs of a shape, bfloat16 on a GPU and float32 on a CPU, and what float64 makes of them."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape, self.device = shape, device
        self.facts: dict[str, Any] = {"dtype": str(DTYPES[device.type]).removeprefix("torch.")}
        self.facts["our_backend"] = ours.backend(device)
        inputs = Inputs.random(shape, device, 0)
        size = sum(x.nbytes for x in (*inputs.leaves, inputs.grad_out))
        self.inputs = [inputs, *(Inputs.random(shape, device, seed) for seed in range(1, timing.rotation(size)))]
        pairs = shape.batch * shape.kv_heads
        chosen = torch.linspace(0, pairs - 1, min(pairs, CHECKED_HEADS)).round().int().tolist()
        self._checked = [divmod(pair, shape.kv_heads) for pair in chosen]
        self._expected: dict[float, list[list[Tensor]]] = {}

    def prepare(self, implementation: AttentionImplementation) -> Prepared:
        """Raises NotRun, or WrongResult."""
        inputs = self.inputs[0]
        expected = self._expectation(implementation.alpha)
        base = timing.allocated_bytes(self.device)
        attention = implementation.build(self.shape, self.device)

        def step() -> list[Tensor]:
            out = attention(*inputs.leaves)
            return [out.detach(), *torch.autograd.grad(out, inputs.leaves, inputs.grad_out)]

        poison = [torch.full_like(x, torch.nan) for x in (*inputs.leaves, inputs.grad_out)]
        del poison  # a GPU's allocator hands it out again: what an implementation never writes shall not look right
        errors = self._errors(implementation, step(), expected)
        return Prepared(attention, self.inputs, timing.peak_above(base, step, self.device), errors)

    def _errors(
        self, implementation: AttentionImplementation, results: Sequence[Tensor], expected: Sequence[Sequence[Tensor]]
    ) -> dict[str, float]:
        tolerance = implementation.tolerance if results[0].dtype == torch.bfloat16 else FLOAT32_TOLERANCE
        errors = dict.fromkeys(("out", "dq", "dk", "dv"), 0.0)
        for (batch, kv_head), wanted in zip(self._checked, expected, strict=True):
            for key, got, want in zip(errors, self._head(results, batch, kv_head), wanted, strict=True):
                error = float((got - want).norm() / want.norm())
                if not error <= tolerance:  # NaN too
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
            tensors = [x.detach() for x in (*self.inputs[0].leaves, self.inputs[0].grad_out)]
            heads = [self._head(tensors, *pair) for pair in self._checked]
            self._expected[alpha] = [float64_attention(*head, alpha=alpha) for head in heads]
        return self._expected[alpha]
