"""Soft-masked attention against its peers, forward and backward."""

from __future__ import annotations

from benchmarks.attention.cases import Case
from benchmarks.attention.peers import eager, flash_attention, flex, ours, sdpa, xformers_attention
from benchmarks.attention.shape import Shape, shapes
from benchmarks.suite import Suite

SUITE: Suite[Shape] = Suite(
    name="attention",
    parts=("forward", "backward"),
    shapes=shapes,
    case=Case,
    implementations=tuple(
        implementation
        for role in ("ours", "bound", "rival")
        for peer in (ours, flex, flash_attention, sdpa, xformers_attention, eager)
        for implementation in peer.IMPLEMENTATIONS
        if implementation.role == role
    ),
)
