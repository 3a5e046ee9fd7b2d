"""Implementations of InfoNCE at all Matryoshka dims: ours, the GEMMs alone, and those with the same result."""

from benchmarks.contrastive.peers import cross_entropies, eager, ours, sentence_transformers, three_gemms

IMPLEMENTATIONS = (
    *ours.IMPLEMENTATIONS,
    *three_gemms.IMPLEMENTATIONS,
    *cross_entropies.IMPLEMENTATIONS,
    *sentence_transformers.IMPLEMENTATIONS,
    *eager.IMPLEMENTATIONS,  # eager_compiled last: it compiles long
)
