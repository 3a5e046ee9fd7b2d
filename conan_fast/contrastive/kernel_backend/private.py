"""Hard negatives that are candidates of their own query only, for InfoNCE by kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .launch import LN2, Kernels, Vectors, aligned_negatives, scaled, suffix_sums


class ScoredNegatives(NamedTuple):
    """Of the rows of a chunk, [dims, rows, K]; scores in units of log 2."""

    scores: Tensor
    inverse_norms: Tensor

    def mean(self, logsumexp: Tensor) -> Tensor:
        """sum_k weight_k score_k, natural units [dims, rows], for logsumexp [dims, rows]."""
        return ((self.scores - logsumexp[..., None]).exp2() * self.scores).sum(2) * LN2


class PrivateNegatives:
    """All of them, [N, K, D]; the functions take the rows of a chunk."""

    def __init__(self, kernels: Kernels, negatives: Tensor, ids: Tensor | None) -> None:
        self.kernels, self.shape = kernels, negatives.shape
        self.ids = None if ids is None else ids.contiguous()
        self.row_scale: Tensor | None = None
        if negatives.dtype == torch.float16 and negatives.numel():
            flat, row_scale = scaled(negatives.flatten(0, 1), kernels.dims[-1])
            negatives, self.row_scale = flat.view(*self.shape[:2], -1), row_scale.view(self.shape[:2])
        self.negatives = aligned_negatives(negatives)

    def score(self, queries: Vectors, rows: slice) -> ScoredNegatives:
        ids = None if self.ids is None else self.ids[rows]
        return ScoredNegatives(*self.kernels.private_scores(queries, self.negatives[rows], ids))

    def differentiate(
        self,
        queries: Vectors,
        rows: slice,
        scored: ScoredNegatives,
        logsumexp: Tensor,
        factors: Sequence[float],
        total: int,
        weight_scale: Tensor | None,
        product_scale: Tensor,
        product: Tensor,
        out: Tensor,
    ) -> None:
        """Writes their gradients to out [rows, K, width], adds their part to the queries' product."""
        scores, inverse_norms = scored
        weights = (scores - logsumexp[..., None]).exp2_()
        for m, factor in enumerate(factors):
            weights[m] *= factor
        norm_part = suffix_sums(weights * scores * inverse_norms.square() * (LN2 / total))
        weights *= queries.inverse_norms[:, : len(queries), None] * inverse_norms
        suffix_sums(weights)
        if weight_scale is not None:
            weights *= weight_scale
        row_scale = None if self.row_scale is None else self.row_scale[rows].flatten()
        self.kernels.private_gradients(
            queries, self.negatives[rows], weights, norm_part, product_scale, row_scale, product, out.flatten(0, 1)
        )
