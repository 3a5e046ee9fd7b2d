"""The contrastive kernels as functions on tensors: passes tensors to the kernels and starts them, no more."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack

from ... import _native
from ..norms import BLOCK_ROWS
from .score_block import GradientScales, PrivateScores, QueryChunk, ScoreBlock, Vectors, padded


class Kernels:
    """The kernels of one compiled module, for some dims, on one device and its current stream."""

    def __init__(self, backend: str, dims: Sequence[int], device: torch.device, temperature: Tensor | None) -> None:
        """temperature: 0-dim float32 on `device`; None for plain cosines from `private_scores`."""
        self.module: ModuleType = _native.module(backend)
        self.tile: int = self.module.contrastive_tile
        self.segment: int = self.module.contrastive_segment
        self.dims = list(dims)
        self.device = device
        self.temperature = temperature
        self._stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float32, device=self.device)

    def vectors(self, features: Tensor, ids: Tensor | None) -> Vectors:
        """[n, D] of any strides and alignment, ready for the kernels."""
        row_scale = None
        size = features.shape[1]
        if features.dtype == torch.float16:
            features, row_scale = unit_length(features, self.dims[-1])
        else:
            features = _aligned(features, self.dims[-1])
        norms = self.empty(len(self.dims), padded(len(features), self.tile))
        self.module.contrastive_norms(to_dlpack(features), self.dims, to_dlpack(norms), self._stream)
        return Vectors(features, size, norms, None if ids is None else ids.contiguous(), row_scale)

    def segments(self, columns: int) -> int:
        """How many partial sums a row has for these columns."""
        return padded(columns, self.tile) // self.segment

    def partials(self, rows: int, segments: int) -> Tensor:
        """Room for reference, sum and weighted sum of each segment."""
        return self.empty(3, len(self.dims), rows, segments)

    def scores(self, block: ScoreBlock) -> None:
        """Writes the block's partial sums, its own positives' scores to the chunk's, and its weights if they are kept.

        The weights are relative to the chunk's logsumexp if that is known, else to what the partial sums say. Before,
        for float32 features, they hold the dot products of the columns that each dim adds.
        """
        chunk, candidates = block.chunk, block.candidates.vectors
        if not len(candidates):
            return
        self.module.contrastive_scores(
            to_dlpack(chunk.vectors.features), to_dlpack(candidates.features), _capsule(chunk.vectors.ids),
            _capsule(candidates.ids), to_dlpack(chunk.vectors.inverse_norms), to_dlpack(candidates.inverse_norms),
            _capsule(self.temperature), self.dims, self._own_column(block), to_dlpack(chunk.own_scores),
            _capsule(chunk.logsumexp), _capsule(block.weights), to_dlpack(block.partials), block.first_segment,
            self._stream,
        )  # fmt: skip

    def combine(self, partials: Tensor, extra: Tensor | None, logsumexp: Tensor | None) -> tuple[Tensor, Tensor]:
        """(logsumexp, sum_j weight_j score_j in natural units), [dims, rows], over all segments and `extra` scores.

        The weights are relative to the returned logsumexp, which is the given one where there is one.
        """
        known = logsumexp is not None
        mean_score = self.empty(*partials.shape[1:3])
        if logsumexp is None:
            logsumexp = torch.empty_like(mean_score)
        self.module.contrastive_combine(
            to_dlpack(partials), _capsule(extra), known, self.dims, to_dlpack(logsumexp), to_dlpack(mean_score),
            self._stream,
        )  # fmt: skip
        return logsumexp, mean_score

    def gradient_operands(self, block: ScoreBlock, scales: GradientScales) -> Tensor:
        """Makes the block's weights into the operands of the gradient's GEMMs, in place.

        Returns total * sum over rows of dL/ds s, [dims, columns].
        """
        chunk, candidates = block.chunk, block.candidates.vectors
        if not len(candidates):
            return self.zeros(len(self.dims), 0)
        assert block.weights is not None and chunk.logsumexp is not None
        groups = -(-len(chunk.vectors) // int(self.module.contrastive_group_rows))
        sums = self.empty(groups, len(self.dims), block.weights.shape[2])
        self.module.contrastive_weights(
            to_dlpack(block.weights), len(candidates), to_dlpack(chunk.vectors.inverse_norms),
            to_dlpack(candidates.inverse_norms), to_dlpack(block.partials), block.first_segment,
            to_dlpack(chunk.logsumexp), to_dlpack(chunk.own_scores), self._own_column(block), self.dims,
            list(scales.dim_weights), _capsule(scales.operands), to_dlpack(sums), self._stream,
        )  # fmt: skip
        return sums.sum(0)[:, : len(candidates)]

    def finish(self, dots: Tensor, vectors: Vectors, norm_part: Tensor, scale: Tensor, out: Tensor) -> None:
        """out = (dots scale - vectors norm_part) row_scale; out may be the memory of dots.

        dots [n, columns], the GEMMs' sum, norm_part [dims, n], scale 0-dim, all float32; out [n, a multiple of 8].
        """
        self.module.contrastive_finish(
            to_dlpack(dots), to_dlpack(vectors.features), to_dlpack(norm_part), to_dlpack(scale),
            _capsule(vectors.row_scale), self.dims, to_dlpack(out), self._stream,
        )  # fmt: skip

    def private_scores(self, queries: Vectors, negatives: Tensor, ids: Tensor | None) -> PrivateScores:
        """Scores, or cosines without a temperature, for negatives [rows, K, D] with ids [rows, K]."""
        count = negatives.shape[1]
        scores = self.empty(len(self.dims), len(queries), count)
        norms = torch.empty_like(scores)
        self.module.contrastive_private_scores(
            to_dlpack(queries.features), to_dlpack(negatives.flatten(0, 1)), count, _capsule(queries.ids),
            _capsule(ids), to_dlpack(queries.inverse_norms), _capsule(self.temperature), self.dims, to_dlpack(scores),
            to_dlpack(norms), self._stream,
        )  # fmt: skip
        return PrivateScores(scores, norms)

    def private_gradients(
        self,
        chunk: QueryChunk,
        negatives: Tensor,
        row_scale: Tensor | None,
        operands: Tensor,
        norm_part: Tensor,
        scale: Tensor,
        out: Tensor,
    ) -> None:
        """Writes out [rows K, a multiple of 8] and adds to the chunk's gradient sum.

        negatives [rows, K, D], row_scale [rows K], operands and norm_part [dims, rows, K], scale 0-dim.
        """
        assert chunk.grad is not None
        self.module.contrastive_private_gradients(
            to_dlpack(chunk.vectors.features), to_dlpack(negatives.flatten(0, 1)), negatives.shape[1],
            to_dlpack(operands), to_dlpack(norm_part), to_dlpack(scale), _capsule(row_scale), self.dims,
            to_dlpack(chunk.grad.value), to_dlpack(out), self._stream,
        )  # fmt: skip

    def _own_column(self, block: ScoreBlock) -> int:
        column: int = self.module.no_own_column if block.own_column is None else block.own_column
        return column


def _capsule(x: Tensor | None) -> object:
    return None if x is None else to_dlpack(x)


def _aligned(features: Tensor, columns: int) -> Tensor:
    """[n, at least `columns`] with rows aligned to 16 bytes: the tensor itself, or a copy."""
    per_chunk = 16 // features.element_size()
    if features.stride(1) == 1 and features.stride(0) % per_chunk == 0 and features.data_ptr() % 16 == 0:
        return features
    return features[:, :columns].clone(memory_format=torch.contiguous_format)


def aligned_negatives(negatives: Tensor) -> Tensor:
    """[N, K, at least D] whose rows follow on each other, aligned to 16 bytes: the tensor itself, or a copy."""
    negatives = negatives.contiguous()
    count, size = negatives.shape[1:]
    if size * negatives.element_size() % 16 == 0 and negatives.data_ptr() % 16 == 0:
        return negatives
    copy = torch.empty(len(negatives), count, padded(size, 8), dtype=negatives.dtype, device=negatives.device)
    copy[..., :size] = negatives
    return copy


def unit_length(features: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Copies of float16 vectors, scaled to lengths of about 1 by powers of two, and these powers [n].

    Weights in float16 then need the range of the prefixes' norms only, not that of all vectors' lengths. Only elements
    below 2^-14 of a vector's length are rounded.
    """
    out = torch.empty(len(features), columns, dtype=features.dtype, device=features.device)
    scale = torch.empty(len(features), dtype=torch.float32, device=features.device)
    for start in range(0, len(features), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        part = features[rows, :columns].float()
        exponent = torch.frexp(part.square().sum(1).sqrt()).exponent.clamp(-100, 100)  # NaN and inf have any
        scale[rows] = ((127 - exponent) << 23).view(torch.float32)  # 2^-exponent, from its bits
        torch.mul(part, scale[rows, None], out=part)
        out[rows] = part
    return out, scale
