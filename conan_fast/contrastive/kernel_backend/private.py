"""Hard negatives that are candidates of their own query only, for InfoNCE by kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import Kernels, aligned_negatives, unit_length
from .score_block import LN2, GradientScales, PrivateScores, QueryChunk, suffix_sums


class PrivateNegatives:
    """The private negatives [N, K, D] of all queries; the methods take a chunk of these."""

    def __init__(self, kernels: Kernels, negatives: Tensor, ids: Tensor | None) -> None:
        self.kernels, self.shape = kernels, negatives.shape
        self.ids = None if ids is None else ids.contiguous()
        self.row_scale: Tensor | None = None
        if negatives.dtype == torch.float16 and negatives.numel():
            flat, row_scale = unit_length(negatives.flatten(0, 1), kernels.dims[-1])
            negatives, self.row_scale = flat.view(*self.shape[:2], -1), row_scale.view(self.shape[:2])
        self.negatives = aligned_negatives(negatives)

    def score(self, chunk: QueryChunk) -> PrivateScores:
        ids = None if self.ids is None else self.ids[chunk.rows]
        return self.kernels.private_scores(chunk.vectors, self.negatives[chunk.rows], ids)

    def differentiate(self, chunk: QueryChunk, scales: GradientScales, out: Tensor) -> None:
        """Writes their gradients to out [rows, K, width], adds their part to the chunk's gradient sum."""
        assert chunk.private is not None and chunk.logsumexp is not None
        scores, inverse_norms = chunk.private
        operands = (scores - chunk.logsumexp[..., None]).exp2_()
        for m, dim_weight in enumerate(scales.dim_weights):
            operands[m] *= dim_weight
        norm_part = suffix_sums(operands * scores * inverse_norms.square() * (LN2 / scales.total))
        operands *= chunk.vectors.inverse_norms[:, : len(chunk.vectors), None] * inverse_norms
        suffix_sums(operands)
        if scales.operands is not None:
            operands *= scales.operands
        negatives, row_scale = self.negatives[chunk.rows], None
        if self.row_scale is not None:
            row_scale = self.row_scale[chunk.rows].flatten()
        self.kernels.private_gradients(
            chunk, negatives, row_scale, operands, norm_part, scales.results, out.flatten(0, 1)
        )
