"""Plain torch: normalise the prefixes, multiply, cross-entropy, for each dim; also compiled, and dim by dim."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.contrastive.cases import (
    TEMPERATURE,
    GradientStep,
    InfoNCEImplementation,
    Inputs,
    Loss,
    by_autograd,
    loss_per_dim,
    per_dim,
)


def _cross_entropy(queries: Tensor, candidates: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(queries @ candidates.T / TEMPERATURE, labels)


def eager_dim_by_dim(inputs: Inputs, dims: Sequence[int]) -> GradientStep:
    """Backward after each dim, so that the scores of only one dim are in memory."""
    losses = [loss_per_dim([dim], _cross_entropy) for dim in dims]

    def run() -> None:
        for x in inputs:
            x.grad = None
        for loss in losses:
            loss(*inputs).backward()

    return GradientStep(run, lambda: [x.grad for x in inputs if x.grad is not None])


@lru_cache(maxsize=1)
def _compiled_loss(dims: tuple[int, ...], _: torch.Size) -> Loss:
    return torch.compile(loss_per_dim(dims, _cross_entropy), dynamic=False)


def eager_compiled(inputs: Inputs, dims: Sequence[int]) -> GradientStep:
    return by_autograd(inputs, _compiled_loss(tuple(dims), inputs[-1].shape))


EAGER = "normalise, q @ c.T / t, cross_entropy, for each dim"
IMPLEMENTATIONS = tuple(
    InfoNCEImplementation(name, "rival", about, build, squares, squares_per_dim, prefixes=1)
    for name, about, build, squares, squares_per_dim in (
        ("eager", EAGER, per_dim(lambda *_: _cross_entropy), 3, 1),
        ("eager_dim_by_dim", "the same with a backward pass for each dim: less memory", eager_dim_by_dim, 4, 0),
        ("eager_compiled", "eager under torch.compile", eager_compiled, 2, 1),
    )
)
