"""A chunk of queries, some candidates, and the block of scores between them, as the kernels take and leave them.

Scores are cosine / temperature in units of log 2. For each row and each *segment* of 64 columns the kernels write
partial sums of the softmax; `weights` are the softmax weights of the block, [dims, rows, padded columns].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

LN2 = math.log(2)


@dataclass
class Vectors:
    """Queries or candidates as the kernels take them; cosines are those of the caller's, lengths may differ.

    row_scale: gradients of the caller's vectors are those of these times it; None for 1.
    """

    features: Tensor  # [n, at least the largest of dims], rows aligned to 16 bytes
    size: int  # elements of one of the caller's vectors
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


@dataclass
class GradientSum:
    """Sums of GEMM results [n, columns], float32. The first ones overwrite what is there."""

    value: Tensor
    started: bool = False

    def result(self) -> Tensor:
        """The sum, 0 if nothing was added."""
        if not self.started:
            self.value.zero_()
            self.started = True
        return self.value


@dataclass
class Candidates:
    """Candidates that all queries share, or a part of them, and what is collected for them."""

    vectors: Vectors
    first_own: int | None  # the column of query 0's own positive (perhaps outside of this part); None: not among these
    wanted: bool  # whether their gradient is
    grad: GradientSum | None = None  # None if it is not wanted
    radial: Tensor | None = None  # [dims, n]: total * sum_i G s

    def part(self, start: int, stop: int, tile: int) -> Candidates:
        first_own = None if self.first_own is None else self.first_own - start
        return Candidates(self.vectors.part(start, stop, tile), first_own, self.wanted)


class PrivateScores(NamedTuple):
    """Of the private negatives of a chunk, [dims, rows, K]."""

    scores: Tensor
    inverse_norms: Tensor

    def mean_score(self, logsumexp: Tensor) -> Tensor:
        """sum_k weight_k score_k, natural units [dims, rows], for logsumexp [dims, rows]."""
        return ((self.scores - logsumexp[..., None]).exp2() * self.scores).sum(2) * LN2


@dataclass
class QueryChunk:
    """Some rows of queries, with statistics [dims, rows]."""

    start: int
    vectors: Vectors
    own_scores: Tensor  # of the own positives; 0 where these are not among the candidates
    mean_score: Tensor  # sum_j weight_j score_j, natural units
    logsumexp: Tensor | None = None  # None: not known yet
    private: PrivateScores | None = None
    grad: GradientSum | None = None  # None if it is not wanted

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + len(self.vectors))


@dataclass
class GradientScales:
    """What turns GEMMs of softmax weights into gradients."""

    dim_weights: Sequence[float]
    total: int
    operands: Tensor | None  # 0-dim: what 16-bit operands are multiplied by; None: 1
    results: Tensor  # 0-dim: 1 / (total temperature operands)


class ScoreBlock:
    """A chunk of queries against candidates, and where the kernels write what they find."""

    def __init__(
        self, chunk: QueryChunk, candidates: Candidates, partials: Tensor, first_segment: int, workspace: Tensor | None
    ) -> None:
        """workspace: room for the weights; None: they are not kept."""
        self.chunk, self.candidates = chunk, candidates
        self.partials = partials  # [3, dims, rows, segments]: reference, sum and weighted sum of each segment
        self.first_segment = first_segment  # of these candidates
        dims, columns = candidates.vectors.inverse_norms.shape
        shape = dims, len(chunk.vectors), columns
        # [dims, rows, padded columns]
        self.weights = None if workspace is None else workspace[: math.prod(shape)].view(shape)
        # The column of the first row's own positive; negative or too large where it is outside.
        self.own_column = None if candidates.first_own is None else candidates.first_own + chunk.start


def padded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def suffix_sums(x: Tensor) -> Tensor:
    """x[m] = sum over d >= m of x[d], in place. (torch.cumsum is not deterministic on a GPU.)"""
    for m in reversed(range(len(x) - 1)):
        x[m] += x[m + 1]
    return x
