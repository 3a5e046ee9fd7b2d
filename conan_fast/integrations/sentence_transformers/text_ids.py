"""One id per text, by which duplicates are found."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Odd multipliers of 64 bits, from the golden ratio and the finaliser of splitmix64.
_TOKEN, _POSITION, _FIRST, _SECOND = (
    x - 2**64 for x in (0x9E3779B97F4A7C15, 0xD1B54A32D192ED03, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def text_ids(features: dict[str, Any]) -> Tensor:
    """int64 [texts], on the device of the tokens, without synchronising: equal for texts of the same tokens.

    Different texts get different ids but for a chance of about 2^-64 per pair. Padding on either side does not matter.
    features: one column as a SentenceTransformer's `preprocess` (`tokenize`) returns it: padded (`input_ids` and
    `attention_mask`, [texts, length]), flattened (`cu_seq_lens_q`), or of a StaticEmbedding (`offsets`).
    Raises ValueError for anything but text.
    """
    tokens = features.get("input_ids")
    if tokens is None or "pixel_values" in features or features.get("modality", "text") != "text":
        raise ValueError(f"mask_duplicates=True supports texts only, got a column with {sorted(features)}")
    if "cu_seq_lens_q" in features or "offsets" in features:
        starts = features["cu_seq_lens_q"][:-1] if "cu_seq_lens_q" in features else features["offsets"]
        places = torch.arange(tokens.numel(), device=tokens.device)
        rows = torch.searchsorted(starts.to(places.dtype), places, right=True) - 1
        hashes = _hashes(tokens.flatten(), places - starts[rows])
        return torch.zeros(len(starts), dtype=torch.int64, device=tokens.device).index_add_(0, rows, hashes)
    mask = features["attention_mask"].bool()
    return torch.where(mask, _hashes(tokens, mask.cumsum(1) - 1), 0).sum(1)


def _hashes(tokens: Tensor, positions: Tensor) -> Tensor:
    """int64, a hash of each token and its position, which counts from 0. Products wrap around."""
    x = tokens.long() * _TOKEN + (positions.long() + 1) * _POSITION
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _FIRST
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _SECOND
    return x ^ ((x >> 31) & (2**33 - 1))
