"""InfoNCE at all Matryoshka dims against its peers, forward and backward."""

from __future__ import annotations

from benchmarks.contrastive.cases import Case
from benchmarks.contrastive.peers import (
    cut_cross_entropy,
    eager,
    inf_cl,
    liger,
    ours,
    sentence_transformers,
    three_products,
    torch_chunked,
)
from benchmarks.contrastive.shape import Shape, shapes
from benchmarks.suite import Suite

SUITE: Suite[Shape] = Suite(
    name="contrastive",
    parts=("both",),
    shapes=shapes,
    case=Case,
    implementations=(
        *ours.IMPLEMENTATIONS,
        *three_products.IMPLEMENTATIONS,
        *cut_cross_entropy.IMPLEMENTATIONS,
        *liger.IMPLEMENTATIONS,
        *inf_cl.IMPLEMENTATIONS,
        *torch_chunked.IMPLEMENTATIONS,
        *sentence_transformers.IMPLEMENTATIONS,
        *eager.IMPLEMENTATIONS,  # eager_compiled last: it compiles long
    ),
)
