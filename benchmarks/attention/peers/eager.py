"""The definition, in the dtype of the inputs: scores + log M, softmax, times the values; all of it L x L in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.attention.implementation import Attention, AttentionImplementation, expanded
from benchmarks.attention.shape import ALPHA, DTYPES, Shape
from conan_fast import soft_mask


def dense_bias(shape: Shape, device: torch.device) -> Tensor:
    """log M [L, L], which is added to the scores."""
    return soft_mask(shape.length, ALPHA, device=device).log_().to(DTYPES[device.type])


def _eager(shape: Shape, device: torch.device) -> Attention:
    bias = dense_bias(shape, device)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q.transpose(1, 2) @ expanded(k, shape.heads).mT * shape.head_dim**-0.5 + bias
        return (scores.softmax(-1) @ expanded(v, shape.heads)).transpose(1, 2)

    return attention


def _compiled(shape: Shape, device: torch.device) -> Attention:
    return torch.compile(_eager(shape, device), dynamic=False)


IMPLEMENTATIONS = (
    AttentionImplementation(
        name="eager", role="rival", about="the definition in plain torch", build=_eager, squares=4, dense_mask=True
    ),
    AttentionImplementation(
        name="eager_compiled",
        role="rival",
        about="the same under torch.compile",
        build=_compiled,
        squares=3,
        dense_mask=True,
    ),
)
