"""Implementations of InfoNCE at all Matryoshka dims: ours, the GEMMs alone, and those with the same result."""

from benchmarks.contrastive.peers import (
    cut_cross_entropy,
    eager,
    inf_cl,
    liger,
    ours,
    sentence_transformers,
    three_gemms,
    torch_chunked,
)

IMPLEMENTATIONS = (
    *ours.IMPLEMENTATIONS,
    *three_gemms.IMPLEMENTATIONS,
    *cut_cross_entropy.IMPLEMENTATIONS,
    *liger.IMPLEMENTATIONS,
    *inf_cl.IMPLEMENTATIONS,
    *torch_chunked.IMPLEMENTATIONS,
    *sentence_transformers.IMPLEMENTATIONS,
    *eager.IMPLEMENTATIONS,  # eager_compiled last: it compiles long
)
