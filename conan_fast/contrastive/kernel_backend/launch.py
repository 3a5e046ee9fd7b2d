"""The contrastive kernels as functions on tensors: hands tensors over, starts kernels, no more.

Scores are cosine / temperature in units of log 2, [dims, rows, columns padded to whole tiles].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack

from ... import _native
from ..norms import BLOCK_ROWS

LN2 = math.log(2)


@dataclass
class Vectors:
    """Queries or candidates as the kernels take them; cosines are those of the caller's, lengths may differ.

    row_scale: gradients of the caller's vectors are those of these times it; None for 1.
    """

    features: Tensor  # [n, at least the largest of dims], rows aligned to 16 bytes
    size: int  # numbers in one of the caller's vectors
    inverse_norms: Tensor  # [dims, n padded to whole tiles]
    ids: Tensor | None  # [n] int64
    row_scale: Tensor | None  # [n] float32

    def __len__(self) -> int:
        return len(self.features)

    def part(self, start: int, stop: int, tile: int) -> Vectors:
        """The vectors from `start` to `stop`, or to the end. Nothing is copied.

        Candidates begin at multiples of the tile, so that their norms are padded as well.
        """
        ids = None if self.ids is None else self.ids[start:stop]
        row_scale = None if self.row_scale is None else self.row_scale[start:stop]
        stop = min(stop, len(self))
        norms = self.inverse_norms[:, start : start + padded(stop - start, tile)]
        return Vectors(self.features[start:stop], self.size, norms, ids, row_scale)


def padded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


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
            features, row_scale = scaled(features, self.dims[-1])
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

    def scores(
        self,
        queries: Vectors,
        candidates: Vectors,
        own_column: int | None,
        own: Tensor,
        partials: Tensor,
        first_segment: int,
        logsumexp: Tensor | None,
        weights: Tensor | None,
    ) -> None:
        """Writes the partial sums of a block, its own positives' scores to own [dims, rows], and weights if given.

        weights [dims, rows, padded columns], relative to `logsumexp` [dims, rows] if that is given, else to what the
        partial sums say; for float32 features they come in with the products of the parts of the dimensions.
        """
        if not len(candidates):
            return
        column = self.module.no_own_column if own_column is None else own_column
        self.module.contrastive_scores(
            to_dlpack(queries.features), to_dlpack(candidates.features), _capsule(queries.ids),
            _capsule(candidates.ids), to_dlpack(queries.inverse_norms), to_dlpack(candidates.inverse_norms),
            _capsule(self.temperature), self.dims, column, to_dlpack(own), _capsule(logsumexp), _capsule(weights),
            to_dlpack(partials), first_segment, self._stream,
        )  # fmt: skip

    def combine(self, partials: Tensor, extra: Tensor | None, logsumexp: Tensor | None) -> tuple[Tensor, Tensor]:
        """(logsumexp, sum_j weight_j score_j in natural units), [dims, rows], over all segments and `extra` scores.

        The weights are relative to the returned logsumexp, which is the given one where there is one.
        """
        known = logsumexp is not None
        mean = self.empty(*partials.shape[1:3])
        if logsumexp is None:
            logsumexp = torch.empty_like(mean)
        self.module.contrastive_combine(
            to_dlpack(partials), _capsule(extra), known, self.dims, to_dlpack(logsumexp), to_dlpack(mean), self._stream
        )
        return logsumexp, mean

    def gradient_weights(
        self,
        weights: Tensor,
        queries: Vectors,
        candidates: Vectors,
        own_column: int | None,
        own: Tensor,
        partials: Tensor,
        first_segment: int,
        logsumexp: Tensor,
        factors: Sequence[float],
        scale: Tensor | None,
    ) -> Tensor:
        """Makes the operands of the gradient's products of `weights`, in place; the sums over rows [dims, columns]."""
        if not len(candidates):
            return self.zeros(len(self.dims), 0)
        groups = -(-len(queries) // int(self.module.contrastive_group_rows))
        sums = self.empty(groups, len(self.dims), weights.shape[2])
        column = self.module.no_own_column if own_column is None else own_column
        self.module.contrastive_weights(
            to_dlpack(weights), len(candidates), to_dlpack(queries.inverse_norms),
            to_dlpack(candidates.inverse_norms), to_dlpack(partials), first_segment, to_dlpack(logsumexp),
            to_dlpack(own), column, self.dims, list(factors), _capsule(scale), to_dlpack(sums), self._stream,
        )  # fmt: skip
        return sums.sum(0)[:, : len(candidates)]

    def finish(self, product: Tensor, vectors: Vectors, norm_part: Tensor, scale: Tensor, out: Tensor) -> None:
        """out = (product scale - vectors norm_part) row_scale; out may be the memory of product.

        product [n, columns], norm_part [dims, n], scale 0-dim, all float32; out [n, a multiple of 8].
        """
        self.module.contrastive_finish(
            to_dlpack(product), to_dlpack(vectors.features), to_dlpack(norm_part), to_dlpack(scale),
            _capsule(vectors.row_scale), self.dims, to_dlpack(out), self._stream,
        )  # fmt: skip

    def private_scores(self, queries: Vectors, negatives: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """(scores, or cosines without a temperature, inverse norms), [dims, rows, K] for negatives [rows, K, D]."""
        count = negatives.shape[1]
        scores = self.empty(len(self.dims), len(queries), count)
        norms = torch.empty_like(scores)
        self.module.contrastive_private_scores(
            to_dlpack(queries.features), to_dlpack(negatives.flatten(0, 1)), count, _capsule(queries.ids),
            _capsule(ids), to_dlpack(queries.inverse_norms), _capsule(self.temperature), self.dims, to_dlpack(scores),
            to_dlpack(norms), self._stream,
        )  # fmt: skip
        return scores, norms

    def private_gradients(
        self,
        queries: Vectors,
        negatives: Tensor,
        weights: Tensor,
        norm_part: Tensor,
        scale: Tensor,
        row_scale: Tensor | None,
        product: Tensor,
        out: Tensor,
    ) -> None:
        """Writes out [rows K, a multiple of 8] and adds to product [rows, columns] of the queries."""
        self.module.contrastive_private_gradients(
            to_dlpack(queries.features), to_dlpack(negatives.flatten(0, 1)), negatives.shape[1], to_dlpack(weights),
            to_dlpack(norm_part), to_dlpack(scale), _capsule(row_scale), self.dims, to_dlpack(product),
            to_dlpack(out), self._stream,
        )  # fmt: skip


def suffix_sums(x: Tensor) -> Tensor:
    """x[m] = sum over d >= m of x[d], in place. (torch.cumsum is not deterministic on a GPU.)"""
    for m in reversed(range(len(x) - 1)):
        x[m] += x[m + 1]
    return x


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


def scaled(features: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Copies of float16 vectors, brought to lengths of about 1 by powers of two, and these powers [n].

    Weights in float16 then need the range of the prefixes' norms only, not that of all vectors' lengths. Nothing is
    rounded but numbers below 2^-14 of a vector's length.
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
