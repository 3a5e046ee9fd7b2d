"""The soft mask of Conan-Embedding-v2: its schedule alpha(t) and the mask M itself (section 3.2, eq. 3-4, appendix C).

M_ij = 1 for j <= i; above the diagonal, with l the sequence's length and indices counted from 1:
min(alpha l / j, 1) for saturation "key" (columns reach 1 from the front, as the paper's text says), min(alpha l / i, 1)
for "query" (the printed formula), alpha for "uniform". alpha = 0 is causal, alpha = 1 bidirectional, in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _checks

# In the order of Saturation in csrc/soft_mask.h: the index is the code that the kernels know.
SATURATIONS = ("key", "query", "uniform")
CURVES = ("linear", "accelerating", "decelerating")


@dataclass(frozen=True)
class SoftMaskSchedule:
    """alpha as a function of the training step (eq. 4 and appendix C).

    total_steps: the step at which alpha reaches 1, and stays; 0 means bidirectional from the first step.
    curve: "linear" t/T (the paper's best), "accelerating" (t/T)^2 or "decelerating" 1 - (1 - t/T)^2.
    Raises ValueError for negative total_steps or step and for an unknown curve.
    """

    total_steps: int
    curve: str = "linear"

    def __post_init__(self) -> None:
        if self.total_steps < 0:
            raise ValueError(f"total_steps must be at least 0, got {self.total_steps}")
        _checks.one_of("curve", self.curve, CURVES)

    def __call__(self, step: int) -> float:
        """alpha in [0, 1] at `step` (0-based: step 0 is causal unless total_steps is 0)."""
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        if step >= self.total_steps:
            return 1.0
        done = step / self.total_steps
        if self.curve == "accelerating":
            return done * done
        if self.curve == "decelerating":
            return 1.0 - (1.0 - done) ** 2
        return done


def above_diagonal(
    rows: Tensor, keys: Tensor, lengths: Tensor, alpha: float | Tensor, saturation: str, dtype: torch.dtype
) -> Tensor:
    """M above the diagonal, in `dtype`, broadcast over 0-based row indices `rows`, key indices `keys` and `lengths`.

    The shape is that of keys, rows or lengths alone where M does not depend on the others.
    """
    if saturation == "uniform":
        return torch.ones_like(lengths, dtype=dtype) * alpha
    index = keys if saturation == "key" else rows
    return (lengths.to(dtype) * alpha / (index + 1).to(dtype)).clamp(max=1.0)


def soft_mask(
    length: int, alpha: float | Tensor, saturation: str = "key", device: torch.device | str | None = None
) -> Tensor:
    """M itself, [length, length] float32, for plots and references; the operators never build it.

    alpha: float in [0, 1] or 0-dim tensor. Raises ValueError for a negative length, alpha outside [0, 1] or an unknown
    saturation.
    """
    if length < 0:
        raise ValueError(f"length must be at least 0, got {length}")
    _checks.one_of("saturation", saturation, SATURATIONS)
    index = torch.arange(length, device=device)
    _checks.alpha(alpha, index.device)
    if isinstance(alpha, Tensor) and alpha.device.type == "cpu":
        _checks.alpha_value(alpha.item())
    rows, keys = index[:, None], index[None, :]
    above = above_diagonal(rows, keys, torch.full_like(keys[:, :1], length), alpha, saturation, torch.float32)
    return torch.where(keys <= rows, torch.ones((), device=device), above.float())
