"""Implementations of InfoNCE at all Matryoshka dims: ours, the GEMMs alone, and those with the same result."""

from benchmarks.contrastive.peers import cross_entropies, eager, ours, sentence_transformers, three_gemms

PEERS = (ours, three_gemms, cross_entropies, sentence_transformers, eager)  # eager_compiled last: it compiles long
IMPLEMENTATIONS = tuple(
    implementation
    for role in ("ours", "gemms", "rival")
    for peer in PEERS
    for implementation in peer.IMPLEMENTATIONS
    if implementation.role == role
)
