"""What an implementation of InfoNCE is to the benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import timing
from benchmarks.contrastive.shape import Shape
from benchmarks.peer import Implementation

TEMPERATURE = 0.05
# Relative (Frobenius) error of the checked gradients; one wrong row of 64 gives about 0.12. In bfloat16 a score of 14,
# a positive's, is off by up to 0.03, and its weight by as much.
TOLERANCE = 0.05

Inputs = Sequence[Tensor]  # queries [N, D], positives [N, D] and, with hard negatives, negatives [N, K, D]
Loss = Callable[..., Tensor]  # of the inputs


@dataclass(frozen=True)
class Work:
    """step: forward and backward. gradients: those of the inputs that the last step left."""

    step: timing.Step
    gradients: Callable[[], list[Tensor]]


Build = Callable[[Inputs, Sequence[int]], Work]  # of the inputs, which want gradients, and the dims


def with_autograd(inputs: Inputs, loss: Loss) -> Work:
    kept: list[Tensor] = []

    def step() -> None:
        kept.clear()
        kept.extend(torch.autograd.grad(loss(*inputs), inputs))

    return Work(step, lambda: kept)


@dataclass(frozen=True, kw_only=True)
class ContrastiveImplementation(Implementation):
    """What it holds at once, for the estimate: `squares` + `squares_per_dim` each N x M numbers, and `prefixes` times
    the normalised prefixes of all dims."""

    build: Build
    squares: int = 0
    squares_per_dim: int = 0
    prefixes: int = 0
    tolerance: float = TOLERANCE
    checked: bool = True

    def bytes_needed(self, shape: Shape) -> int:
        squares = self.squares + self.squares_per_dim * len(shape.dims)
        texts = shape.pairs + shape.candidates
        features = texts * (4 * shape.dim + self.prefixes * sum(shape.dims))
        return shape.element_size * (squares * shape.pairs * shape.candidates + features)


def all_candidates(positives: Tensor, *negatives: Tensor) -> Tensor:
    """[N (1 + K), D], the positives first."""
    return torch.cat([positives, *(x.flatten(0, 1) for x in negatives)])
