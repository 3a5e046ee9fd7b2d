"""conan_fast.soft_mask_attention, with the backend that "auto" takes, named: nothing falls back unseen."""

from __future__ import annotations

import torch

from benchmarks.attention.implementation import Attention, AttentionImplementation, Build
from benchmarks.attention.shape import ALPHA, Shape
from conan_fast import build_info, soft_mask_attention

TOLERANCE = 0.005


def backend(device: torch.device) -> str:
    return "cuda" if device.type == "cuda" and "cuda" in build_info()["available_backends"] else "torch"


def _build(deterministic: bool) -> Build:
    def build(_: Shape, device: torch.device) -> Attention:
        chosen = backend(device)
        return lambda q, k, v: soft_mask_attention(q, k, v, ALPHA, deterministic=deterministic, backend=chosen)

    return build


IMPLEMENTATIONS = (
    AttentionImplementation(
        name="ours", role="ours", about="conan_fast.soft_mask_attention", build=_build(False), tolerance=TOLERANCE
    ),
    AttentionImplementation(
        name="ours_deterministic",
        role="ours",
        about="the same with deterministic=True: bit-equal gradients",
        build=_build(True),
        tolerance=TOLERANCE,
    ),
)
