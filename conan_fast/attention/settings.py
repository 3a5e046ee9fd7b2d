"""The arguments of soft-masked attention besides q, k and v: as the caller gives them, and as a backend takes them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Saved(NamedTuple):
    """What the forward pass keeps for the backward pass."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    logsumexp: Tensor  # [..., heads, tokens], natural


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]  # dq, dk, dv; None where not needed


class Settings(NamedTuple):
    """As every backend takes them."""

    cu_seqlens: Tensor | None  # int32 [S + 1] for packed batches
    max_seqlen: int  # of packed batches
    alpha: float | Tensor  # a 0-dim tensor may be on the device of q or on the CPU
    scale: float
    saturation: str
    deterministic: bool


class Arguments(NamedTuple):
    """The caller's, not yet checked; see `soft_mask_attention_varlen`. cu_seqlens is None for padded batches."""

    cu_seqlens: Tensor | None
    max_seqlen: int
    alpha: float | Tensor
    saturation: str
    scale: float | None
    deterministic: bool
    backend: str
