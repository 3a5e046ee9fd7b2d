"""Implementations of soft-masked attention: ours, those that do less, those with the same result."""

from benchmarks.attention.peers import eager, flash_attention, flex, ours, sdpa, xformers_attention

IMPLEMENTATIONS = tuple(
    implementation
    for role in ("ours", "bound", "rival")
    for peer in (ours, flex, flash_attention, sdpa, xformers_attention, eager)
    for implementation in peer.IMPLEMENTATIONS
    if implementation.role == role
)
