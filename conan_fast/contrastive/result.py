"""What info_nce returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class InfoNCE(NamedTuple):
    """loss: scalar; loss_per_dim [len(dims)] and negative_scores [N, K] (None without negatives) carry no gradient."""

    loss: Tensor
    loss_per_dim: Tensor
    negative_scores: Tensor | None
