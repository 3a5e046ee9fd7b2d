"""Norms of Matryoshka prefixes, and their part in the gradient of cosine similarities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks

# Rows that are brought to the accumulation dtype at a time.
BLOCK_ROWS = 2048


def inverse(squared: Tensor) -> Tensor:
    """1 / norm, and 0 for a zero vector, which makes its similarities and its gradient 0."""
    return torch.where(squared == 0, 0, squared.rsqrt())


def prefix_inverse_norms(features: Tensor, dims: Sequence[int]) -> Tensor:
    """1 / |x[:d]| of each row for each d: [dims, n] in the accumulation dtype."""
    dtype = _checks.accumulation_dtype(features.dtype)
    squared = torch.empty(len(dims), features.shape[0], dtype=dtype, device=features.device)
    for start in range(0, features.shape[0], BLOCK_ROWS):
        part = features[start : start + BLOCK_ROWS].to(dtype)
        for m, (low, high) in enumerate(zip([0, *dims[:-1]], dims, strict=True)):
            squared[m, start : start + BLOCK_ROWS] = part[:, low:high].square().sum(1)
    return inverse(squared.cumsum(0))


def subtract_norm_part(
    grad: Tensor, features: Tensor, inverse_norms: Tensor, weighted: Tensor, segments: list[tuple[int, int]]
) -> None:
    """In place: grad[:, segment of m] -= features[:, segment] * sum over d >= m of weighted^d / |x|_d^2.

    grad and features [n, D], inverse_norms and weighted [dims, n].
    """
    factors = (weighted * inverse_norms.square()).flip(0).cumsum(0).flip(0)
    for start in range(0, features.shape[0], BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        part = features[rows].to(grad.dtype)
        for m, (low, high) in enumerate(segments):
            grad[rows, low:high].addcmul_(part[:, low:high], factors[m, rows, None], value=-1)
