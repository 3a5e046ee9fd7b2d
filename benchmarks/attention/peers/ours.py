"""conan_fast.soft_mask_attention. The backend that "auto" chooses is named, so that a fallback is an error."""

from functools import partial
from itertools import accumulate
from typing import Any

import torch

from benchmarks.attention.cases import ALPHA, Attention, AttentionImplementation, Case, our_backend
from conan_fast import soft_mask_attention, soft_mask_attention_varlen

TOLERANCE = 0.005


def _build(deterministic: bool, case: Case, device: torch.device) -> Attention:
    options: dict[str, Any] = {"deterministic": deterministic, "backend": our_backend(device)}
    if case.layout == "equal":
        return lambda q, k, v: soft_mask_attention(q, k, v, ALPHA, **options)
    ends = torch.tensor([0, *accumulate(case.lengths)], dtype=torch.int32, device=device)
    return lambda q, k, v: soft_mask_attention_varlen(q, k, v, ends, case.length, ALPHA, **options)


IMPLEMENTATIONS = tuple(
    AttentionImplementation(
        name, "ours", about, partial(_build, deterministic), tolerance=TOLERANCE, layouts=("equal", "packed")
    )
    for name, about, deterministic in (
        ("ours", "conan_fast.soft_mask_attention", False),
        ("ours_deterministic", "the same with deterministic=True: bit-equal gradients", True),
    )
)
