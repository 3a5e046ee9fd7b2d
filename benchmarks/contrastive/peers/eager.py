"""The usual way: normalise the prefixes, multiply, cross-entropy, for each dim; plain and compiled."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.contrastive.implementation import (
    TEMPERATURE,
    ContrastiveImplementation,
    Inputs,
    Loss,
    Work,
    with_autograd,
)
from benchmarks.contrastive.peers.once_per_dim import loss_once_per_dim, once_per_dim


def _cross_entropy(queries: Tensor, candidates: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(queries @ candidates.T / TEMPERATURE, labels)


def eager(inputs: Inputs, dims: Sequence[int]) -> Work:
    return once_per_dim(inputs, dims, _cross_entropy)


@lru_cache(maxsize=1)
def _compiled_loss(dims: tuple[int, ...], _: torch.Size) -> Loss:
    return torch.compile(loss_once_per_dim(dims, _cross_entropy), dynamic=False)


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
