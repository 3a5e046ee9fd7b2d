"""What ours extends and calls of sentence-transformers, from wherever the installed version keeps it."""

from __future__ import annotations

from .._requirements import require

require("sentence-transformers", extra="sentence-transformers", minimum="5.2")

from sentence_transformers.util import (  # noqa: E402
    all_gather,
    all_gather_with_grad,
    cos_sim,
    pairwise_cos_sim,
    pytorch_cos_sim,
)

try:
    from sentence_transformers.sentence_transformer import losses
except ImportError:  # before 5.4
    from sentence_transformers import losses  # type: ignore[no-redef, attr-defined]

CachedMultipleNegativesRankingLoss = losses.CachedMultipleNegativesRankingLoss
CoSENTLoss = losses.CoSENTLoss
MatryoshkaLoss = losses.MatryoshkaLoss
MultipleNegativesRankingLoss = losses.MultipleNegativesRankingLoss

__all__ = [
    "CachedMultipleNegativesRankingLoss",
    "CoSENTLoss",
    "MatryoshkaLoss",
    "MultipleNegativesRankingLoss",
    "all_gather",
    "all_gather_with_grad",
    "cos_sim",
    "pairwise_cos_sim",
    "pytorch_cos_sim",
]
