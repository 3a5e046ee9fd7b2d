"""The usual way: normalise the prefixes, multiply, cross-entropy, for each dim; plain and compiled."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from benchmarks.contrastive.implementation import (
    TEMPERATURE,
    ContrastiveImplementation,
    Inputs,
    Loss,
    Work,
    all_candidates,
    with_autograd,
)


def _eager_loss(dims: Sequence[int]) -> Loss:
    def loss(queries: Tensor, *others: Tensor) -> Tensor:
        candidates = all_candidates(*others)
        labels = torch.arange(len(queries), device=queries.device)
        total = queries.new_zeros(())
        for dim in dims:
            q, c = normalize(queries[:, :dim], dim=1), normalize(candidates[:, :dim], dim=1)
            total = total + cross_entropy(q @ c.T / TEMPERATURE, labels)
        return total

    return loss


def eager(inputs: Inputs, dims: Sequence[int]) -> Work:
    return with_autograd(inputs, _eager_loss(dims))


@lru_cache(maxsize=1)
def _compiled_loss(dims: tuple[int, ...], _: torch.Size) -> Loss:
    return torch.compile(_eager_loss(dims), dynamic=False)


def eager_compiled(inputs: Inputs, dims: Sequence[int]) -> Work:
    return with_autograd(inputs, _compiled_loss(tuple(dims), inputs[-1].shape))


IMPLEMENTATIONS = (
    ContrastiveImplementation(
        name="eager",
        role="rival",
        about="normalise, q @ c.T / t, cross_entropy, for each dim",
        build=eager,
        squares=3,
        squares_per_dim=1,
        prefixes=1,
    ),
    ContrastiveImplementation(
        name="eager_compiled",
        role="rival",
        about="the same under torch.compile",
        build=eager_compiled,
        squares=2,
        squares_per_dim=1,
        prefixes=1,
    ),
)
