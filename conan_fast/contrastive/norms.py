"""Norms of Matryoshka prefixes, and their part in the gradient of cosine similarities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks
from .batch import dim_slices

# Rows that are converted to the accumulation dtype at a time.
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
        for m, columns in enumerate(dim_slices(dims)):
            squared[m, start : start + BLOCK_ROWS] = part[:, columns].square().sum(1)
    return inverse(squared.cumsum(0))


def subtract_norm_part(
    grad: Tensor, features: Tensor, inverse_norms: Tensor, radial: Tensor, slices: Sequence[slice]
) -> None:
    """In place: grad[:, slice m] -= features[:, slice m] * sum over d >= m of radial^d / |x|_d^2.

    grad and features [n, D], inverse_norms and radial [dims, n]; slices: the columns that each dim adds.
    """
    factors = (radial * inverse_norms.square()).flip(0).cumsum(0).flip(0)
    for start in range(0, features.shape[0], BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        part = features[rows].to(grad.dtype)
        for m, columns in enumerate(slices):
            grad[rows, columns].addcmul_(part[:, columns], factors[m, rows, None], value=-1)
