"""What a call of soft-masked attention says besides q, k and v."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Settings(NamedTuple):
    """The operators' arguments after the tensors, in their order, as every backend takes them."""

    cu_seqlens: Tensor | None  # int32 [S + 1] for packed batches
    max_seqlen: int  # of packed batches
    alpha: float
    alpha_tensor: Tensor | None  # 0-dim; where given, used in place of alpha
    saturation: str
    scale: float
    deterministic: bool
