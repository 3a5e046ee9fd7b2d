"""Norms of Matryoshka prefixes, and their part in the gradient of cosine similarities."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks
from .batch import dim_parts

# Rows that are converted to the accumulation dtype at a time.
BLOCK_ROWS = 2048


def inverse(squared: Tensor) -> Tensor:
    """1 / norm, and 0 for a zero vector, which makes its similarities and its gradient 0."""
    return squared.rsqrt().nan_to_num_(nan=math.nan, posinf=0.0)


def prefix_inverse_norms(features: Tensor, dims: Sequence[int]) -> Tensor:
    """1 / |x[:d]| of each row for each d: [dims, n] in the accumulation dtype."""
    dtype, blocks = _checks.accumulation_dtype(features.dtype), []
    for block in row_blocks(features):
        blocks.append(torch.stack([part.square().sum(1) for part in dim_parts(block.to(dtype), dims)]))
    squared = blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1)
    return inverse(squared if len(dims) == 1 else squared.cumsum(0))


def subtract_norm_part(
    grad: Tensor, features: Tensor, inverse_norms: Tensor, radial: Tensor, dims: Sequence[int]
) -> None:
    """In place: grad[:, slice m] -= features[:, slice m] * sum over d >= m of radial^d / |x|_d^2.

    grad and features [n, D], inverse_norms and radial [dims, n]; slice m: the columns that dim m adds.
    """
    factors = inverse_norms.square().mul_(radial)
    if len(dims) > 1:
        factors = factors.flip(0).cumsum(0).flip(0)
    blocks = row_blocks(grad), row_blocks(features), row_blocks(factors.t())
    for grad_block, block, factor in zip(*blocks, strict=True):
        parts = dim_parts(grad_block, dims), dim_parts(block.to(grad.dtype), dims), factor[..., None].unbind(1)
        for grad_part, part, column in zip(*parts, strict=True):
            grad_part.addcmul_(part, column, value=-1)


def row_blocks(x: Tensor) -> Sequence[Tensor]:
    """Views of at most BLOCK_ROWS rows each."""
    return (x,) if len(x) <= BLOCK_ROWS else x.split(BLOCK_ROWS)
