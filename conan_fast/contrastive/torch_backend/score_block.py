"""InfoNCE of a chunk of queries against some columns of candidates: the torch backend's inner loops.

With q, c raw features, |x|_d the norm of the first d elements and s^d_ij = (q_i.c_j)[:d] / (|q_i|_d |c_j|_d t):
- (q.c)[:d] is a running sum over the slices of columns between neighbouring dims, so all s^d cost one GEMM over D;
- with the logsumexp of a row over all its candidates, G^d = dL/ds^d follows at once;
- the slice that ends at dim m needs H_m = sum over d >= m of G^d / (|q|_d |c|_d t): dq[slice] = H_m c[slice], and
  dc[slice] = H_m^T q[slice], again two GEMMs over D for all dims, each only if its gradient is wanted;
- the norms add -q_i[slice] sum_{d >= m} a_i^d / |q_i|_d^2 with the radial part a_i^d = sum_j G^d_ij s^d_ij; the same
  over columns for c.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..._numerics import exp_, exp_factor_, logsumexp
from ..batch import Wanted, dim_parts, dim_slices
from ..norms import prefix_inverse_norms, subtract_norm_part


@dataclass
class Candidates:
    """A set of candidates that all queries share: features [m, D], and what is collected for them."""

    features: Tensor
    ids: Tensor | None  # [m] int64
    first_own: int | None  # the column of query 0's own positive; None if theirs are not among these
    inverse_norms: Tensor  # [dims, m]
    grad: Tensor | None  # [m, D]; None if it is not wanted
    radial: Tensor | None  # [dims, m]: sum_i G s without the loss weights; None without grad


@dataclass
class Inputs:
    """What all chunks of queries have in common."""

    queries: Tensor  # [N, D]
    query_ids: Tensor | None  # [N] int64
    private: Tensor | None  # [N, K, D]
    private_ids: Tensor | None  # [N, K] int64
    candidates: list[Candidates]
    dims: Sequence[int]
    dtype: torch.dtype  # of sums and statistics
    temperature: Tensor | float  # a tensor in that dtype on the queries' device
    loss_weights: Tensor | float  # [dims, 1], or that of every dim; divided by the number of queries of all processes
    wanted: Wanted


class QueryChunk:
    """Some rows of queries, in the accumulation dtype, with running statistics per dim."""

    def __init__(self, inputs: Inputs, rows: slice) -> None:
        self.inputs, self.rows = inputs, rows
        self.features = inputs.queries[rows].to(inputs.dtype)  # [R, D]
        self.ids = None if inputs.query_ids is None else inputs.query_ids[rows]  # [R] int64
        self.inverse_norms = prefix_inverse_norms(self.features, inputs.dims)  # [dims, R]
        self.scale = self.inverse_norms / inputs.temperature  # [dims, R]: score = dot product * this / |c|
        self.radial = torch.zeros_like(self.scale)  # [dims, R]: sum_j G s without the loss weights
        self.grad = torch.zeros_like(self.features) if inputs.wanted.queries else None
        self.private = None if inputs.private is None else PrivateChunk(self)
        self.own_scores: Tensor | None = None  # [dims, R], of the own positives; None as long as there are none
        # [dims, R]; None as long as there are no candidates
        self.logsumexp = None if self.private is None else self.private.scores.logsumexp(2)

    def finish(self) -> Tensor | None:
        """After the last block: completes `grad` and `radial`; the gradient [R, K, D] of the private negatives."""
        private_grad = None if self.private is None else self.private.differentiate()
        self.radial *= self.inputs.loss_weights
        if self.grad is not None:
            subtract_norm_part(self.grad, self.features, self.inverse_norms, self.radial, self.inputs.dims)
        return private_grad


class ScoreBlock:
    """The scores [dims, R, C] of a chunk of queries against some columns of a set of candidates."""

    def __init__(self, chunk: QueryChunk, candidates: Candidates, columns: slice) -> None:
        self.chunk, self.candidates, self.columns = chunk, candidates, columns
        self.inverse_norms = candidates.inverse_norms[:, None, columns]  # [dims, 1, C]
        self.own = self._own_square()
        self.scores = self._scores()
        self.exponentials: tuple[Tensor, Tensor] | None = None  # see `collect`

    def collect(self, keep: bool) -> None:
        """Adds these candidates to the chunk's logsumexp, and notes the own positives' scores.

        keep: exp(score - largest score of the row) and the largest scores are kept for `differentiate`.
        """
        chunk = self.chunk
        more, exponentials, largest = logsumexp(self.scores)
        if keep:
            self.exponentials = exponentials, largest
        chunk.logsumexp = more if chunk.logsumexp is None else torch.logaddexp(chunk.logsumexp, more)
        if self.own is not None:
            own = self.scores[self.own].diagonal(0, 1, 2)
            if own.shape == more.shape:
                chunk.own_scores = own.clone()
                return
            if chunk.own_scores is None:
                chunk.own_scores = torch.zeros_like(more)
            chunk.own_scores[:, self.own[1]] = own

    def differentiate(self) -> None:
        """Adds this block's part of the wanted gradients and radial parts. Overwrites the scores."""
        chunk, grad_of, dims, columns = self.chunk, self.candidates, self.chunk.inputs.dims, self.columns
        grad = self._weights()  # dL/ds without the loss weights
        if self.own is not None:
            grad[self.own].diagonal(0, 1, 2).sub_(1)
        self.scores *= grad
        chunk.radial += self.scores.sum(2)
        if grad_of.radial is not None:
            grad_of.radial[:, columns] += self.scores.sum(1)
        grad *= (chunk.scale * chunk.inputs.loss_weights)[..., None]
        grad *= self.inverse_norms
        grad_dots = grad.unbind()
        for m in reversed(range(len(dims) - 1)):
            grad_dots[m].add_(grad_dots[m + 1])  # H_m
        if chunk.grad is not None:
            for out, h, part in zip(dim_parts(chunk.grad, dims), grad_dots, self._parts(), strict=True):
                out.addmm_(h, part)
        if grad_of.grad is not None:
            outs, parts = dim_parts(grad_of.grad[columns], dims), dim_parts(chunk.features, dims)
            for out, h, part in zip(outs, grad_dots, parts, strict=True):
                out.addmm_(h.t(), part)

    def _parts(self) -> Sequence[Tensor]:
        """The candidates' columns that each dim adds. Lower precision is converted each time, not kept."""
        return dim_parts(self.candidates.features[self.columns].to(self.chunk.inputs.dtype), self.chunk.inputs.dims)

    def _scores(self) -> Tensor:
        chunk, rows, columns = self.chunk, self.chunk.features.shape[0], self.inverse_norms.shape[2]
        scores = torch.empty(
            len(chunk.inputs.dims), rows, columns, dtype=chunk.features.dtype, device=chunk.features.device
        )
        previous: Tensor | None = None
        queries = dim_parts(chunk.features, chunk.inputs.dims)
        for dots, query, candidate in zip(scores.unbind(), queries, self._parts(), strict=True):
            if previous is None:
                torch.mm(query, candidate.t(), out=dots)
            else:
                torch.addmm(previous, query, candidate.t(), out=dots)
            previous = dots
        scores *= chunk.scale[..., None]
        scores *= self.inverse_norms
        if (masked := self._masked()) is not None:
            scores.masked_fill_(masked, lowest(scores.dtype))
        return scores

    def _weights(self) -> Tensor:
        """exp(score - logsumexp of the row)."""
        assert self.chunk.logsumexp is not None
        total = self.chunk.logsumexp[..., None]
        if self.exponentials is None:
            return exp_(self.scores - total)
        exponentials, largest = self.exponentials
        return exponentials.mul_(exp_factor_(largest - total))

    def _own_square(self) -> tuple[slice, slice, slice] | None:
        """The square of the block, of all dims, whose diagonal holds the rows' own positives; None if it has none."""
        if self.candidates.first_own is None:
            return None
        offset = self.candidates.first_own + self.chunk.rows.start  # the column of the chunk's first row
        low, high = max(self.columns.start, offset), min(self.columns.stop, offset + len(self.chunk.features))
        if low >= high:
            return None
        rows = slice(low - offset, high - offset)
        return slice(None), rows, slice(low - self.columns.start, high - self.columns.start)

    def _masked(self) -> Tensor | None:
        """[R, C]: where the candidate's id equals the query's positive id, its own positive aside."""
        if self.chunk.ids is None or self.candidates.ids is None:
            return None
        same = self.chunk.ids[:, None] == self.candidates.ids[None, self.columns]
        if self.own is not None:
            same[self.own[1:]].diagonal().fill_(False)
        return same


class PrivateChunk:
    """The hard negatives [R, K, D] of a chunk's rows, each a candidate of its own query only."""

    def __init__(self, chunk: QueryChunk) -> None:
        """Computes their scores [dims, R, K]."""
        self.chunk, inputs = chunk, chunk.inputs
        assert inputs.private is not None
        self.features = inputs.private[chunk.rows].to(chunk.features.dtype)
        rows, count, size = self.features.shape
        flat = self.features.reshape(rows * count, size)
        self.inverse_norms = prefix_inverse_norms(flat, inputs.dims).view(len(inputs.dims), rows, count)
        self.scores = torch.empty_like(self.inverse_norms)
        dots = torch.zeros_like(self.scores[0])
        for m, part in enumerate(dim_slices(inputs.dims)):
            dots += torch.einsum("nkd,nd->nk", self.features[..., part], chunk.features[:, part])
            torch.mul(dots, self.inverse_norms[m] * chunk.scale[m, :, None], out=self.scores[m])
        if inputs.private_ids is not None and chunk.ids is not None:
            self.scores.masked_fill_(inputs.private_ids[chunk.rows] == chunk.ids[:, None], lowest(dots.dtype))

    def differentiate(self) -> Tensor | None:
        """Their gradient [R, K, D] if it is wanted; adds their part to the chunk's own."""
        chunk, inputs = self.chunk, self.chunk.inputs
        assert chunk.logsumexp is not None
        grad = exp_(self.scores - chunk.logsumexp[..., None])  # dL/ds without the loss weights
        radial = grad * self.scores
        chunk.radial += radial.sum(2)
        weighted_scale = chunk.scale * inputs.loss_weights
        grad *= self.inverse_norms * weighted_scale[..., None]
        # Columns past the largest dim have no gradient.
        result = torch.zeros_like(self.features) if inputs.wanted.private else None
        for m, part in enumerate(dim_slices(inputs.dims)):
            grad_dots = grad[m:].sum(0)
            if chunk.grad is not None:
                chunk.grad[:, part] += torch.einsum("nk,nkd->nd", grad_dots, self.features[..., part])
            if result is not None:
                result[..., part] = grad_dots[..., None] * chunk.features[:, None, part]
        if result is not None:
            flat, radial = self.features.flatten(0, 1), radial.flatten(1) * inputs.loss_weights
            subtract_norm_part(result.view_as(flat), flat, self.inverse_norms.flatten(1), radial, inputs.dims)
        return result


def lowest(dtype: torch.dtype) -> float:
    """The score of a masked candidate: weight 0 like -inf, but finite, so that 0 times it is 0."""
    return torch.finfo(dtype).min / 4
