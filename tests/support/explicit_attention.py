"""Attention of transformers' models in plain torch with an explicit mask M: what the adapter is compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from conan_fast import soft_mask

NAME = "explicit_mask_for_tests"


def register(mask_BLL: Tensor) -> str:
    """Every layer of models with this implementation multiplies its softmax weights by `mask_BLL` from now on."""

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Any, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        group = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        scores = query @ key.mT * scaling + mask_BLL[:, None].log()
        return (scores.softmax(-1) @ value).transpose(1, 2), None

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
    return NAME


def mask_of_sequences(batch: int, length: int, sequences: list[tuple[int, list[int]]], alpha: float) -> Tensor:
    """M [B, L, L] for sequences given as (row, places); other places see only themselves."""
    mask = torch.eye(length, dtype=torch.float64).repeat(batch, 1, 1)
    for row, places in sequences:
        own = soft_mask(len(places), 1.0).double()
        index = torch.arange(1, len(places) + 1, dtype=torch.float64)
        own = torch.where(index[:, None] >= index, own, (alpha * len(places) / index).clamp(max=1.0))
        mask[row, torch.tensor(places)[:, None], torch.tensor(places)[None]] = own
    return mask
