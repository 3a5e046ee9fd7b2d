"""What an implementation of attention is to the benchmark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.attention.shape import ALPHA, Shape
from benchmarks.peer import Implementation

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # q [B, L, H, D], k and v [B, L, Hkv, D] -> [B, L, H, D]
Build = Callable[[Shape, torch.device], Attention]  # what it makes, such as a mask, costs memory but no time
TOLERANCE = 0.02  # relative (Frobenius) error of a head; bfloat16 numbers are off by 0.002


@dataclass(frozen=True, kw_only=True)
class AttentionImplementation(Implementation):
    """alpha: of the soft mask that it applies, 1 is no mask. squares: tensors [B, H, L, L] that it holds at once."""

    build: Build
    alpha: float = ALPHA
    squares: int = 0
    dense_mask: bool = False
    tolerance: float = TOLERANCE

    def bytes_needed(self, shape: Shape) -> int:
        """The dense mask is first made in float32."""
        row = 8 * shape.head_dim + self.squares * shape.length
        return shape.element_size * shape.batch * shape.heads * shape.length * row + (
            16 * shape.length**2 * self.dense_mask
        )


def expanded(x: Tensor, heads: int) -> Tensor:
    """[B, L, Hkv, D] -> [B, H, L, D]: copies each key/value head for the query heads that share it."""
    return x.repeat_interleave(heads // x.shape[2], dim=2).transpose(1, 2)
