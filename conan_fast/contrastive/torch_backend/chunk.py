"""InfoNCE of some rows of queries against some columns of candidates: the torch backend's inner loops.

With q, c raw features, |x|_d the norm of the first d numbers and s^d_ij = (q_i.c_j)[:d] / (|q_i|_d |c_j|_d t):
- (q.c)[:d] is a running sum over the segments between neighbouring dims, so all s^d cost one product of full width;
- with the logsumexp of a row over all its candidates, G^d = dL/ds^d follows at once;
- the segment that ends at dim m needs H_m = sum over d >= m of G^d / (|q|_d |c|_d t): dq[seg] = H_m c[seg], and
  dc[seg] = H_m^T q[seg], again two products of full width for all dims;
- the norms add -q_i[seg] sum_{d >= m} a_i^d / |q_i|_d^2 with a_i^d = sum_j G^d_ij s^d_ij; the same over columns for c.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..._numerics import exp_, logsumexp
from ..norms import prefix_inverse_norms, subtract_norm_part


@dataclass
class Candidates:
    """A set of candidates that all queries share: features [m, D], and what is collected for them."""

    features: Tensor
    ids: Tensor | None  # [m] int64
    first_own: int | None  # the column of query 0's own positive; None if theirs are not among these
    inverse_norms: Tensor  # [dims, m]
    grad: Tensor  # [m, D], empty without gradients
    weighted: Tensor  # b_j^d [dims, m]: sum_i G s


@dataclass
class Problem:
    """What all chunks of rows have in common."""

    queries: Tensor  # [N, D]
    query_ids: Tensor | None  # [N] int64
    private: Tensor | None  # [N, K, D]
    private_ids: Tensor | None  # [N, K] int64
    sources: list[Candidates]
    segments: list[tuple[int, int]]
    temperature: Tensor  # in the accumulation dtype, on the queries' device
    weights: Sequence[float]  # of the dims, divided by the number of queries of all processes
    with_gradients: bool


class Chunk:
    """Some rows of queries, in the accumulation dtype, with running statistics per dim."""

    def __init__(self, problem: Problem, rows: slice) -> None:
        dtype = problem.temperature.dtype
        self.rows = rows
        self.features = problem.queries[rows].to(dtype)  # [R, D]
        self.ids = None if problem.query_ids is None else problem.query_ids[rows]  # [R] int64
        self.inverse_norms = prefix_inverse_norms(self.features, [high for _, high in problem.segments])  # [dims, R]
        self.scale = self.inverse_norms / problem.temperature  # [dims, R] a score is the product times this and 1 / |c|
        self.own = torch.zeros_like(self.inverse_norms)  # [dims, R] the own positive's score
        self.weighted = torch.zeros_like(self.inverse_norms)  # a_i^d [dims, R]
        self.grad = torch.zeros_like(self.features) if problem.with_gradients else self.features.new_empty(0)
        self.private = None if problem.private is None else PrivateNegatives(problem, self)
        if self.private is None:
            self.logsumexp = torch.full_like(self.inverse_norms, -torch.inf)  # [dims, R]
        else:
            self.logsumexp = self.private.scores.logsumexp(2)


@dataclass
class Block:
    """A chunk's rows against some columns of a set of candidates."""

    source: Candidates
    columns: slice
    features: Tensor  # [C, D] of the candidates, in the accumulation dtype
    own: tuple[slice, slice] | None  # the square whose diagonal holds the rows' own positives
    stored: Tensor | None  # [dims, R, C] room for the scores


def score(chunk: Chunk, problem: Problem, block: Block) -> Iterator[Tensor]:
    """The block's scores [R, C] for one dim after the other; each also lies in `stored` if the block has it."""
    left_out = _left_out(chunk, block)
    product = chunk.features.new_zeros(len(chunk.features), len(block.features))
    for m, (low, high) in enumerate(problem.segments):
        product.addmm_(chunk.features[:, low:high], block.features[:, low:high].T)
        scores = torch.empty_like(product) if block.stored is None else block.stored[m]
        torch.mul(product, chunk.scale[m, :, None], out=scores)
        scores.mul_(block.source.inverse_norms[m, block.columns])
        if left_out is not None:
            scores.masked_fill_(left_out, _lowest(scores.dtype))
        yield scores


def collect(chunk: Chunk, problem: Problem, block: Block) -> None:
    """Adds the block's candidates to the chunk's logsumexp, and notes the own positives' scores."""
    for m, scores in enumerate(score(chunk, problem, block)):
        chunk.logsumexp[m] = torch.logaddexp(chunk.logsumexp[m], logsumexp(scores))
        if block.own is not None:
            chunk.own[m, block.own[0]] = scores[block.own].diagonal()


def differentiate(chunk: Chunk, problem: Problem, block: Block) -> None:
    """Adds the block's part of the gradients, but for the norms', and of their weighted sums; spends the scores."""
    assert block.stored is not None
    source, columns = block.source, block.columns
    grad: Tensor | None = None  # H_m
    for m in reversed(range(len(problem.segments))):
        (low, high), scores, factor = problem.segments[m], block.stored[m], problem.weights[m]
        weights = exp_(scores - chunk.logsumexp[m, :, None])  # G but for the factor
        if block.own is not None:
            weights[block.own].diagonal().sub_(1)
        scores.mul_(weights)
        chunk.weighted[m].add_(scores.sum(1), alpha=factor)
        source.weighted[m, columns].add_(scores.sum(0), alpha=factor)
        weights.mul_(factor * chunk.scale[m, :, None]).mul_(source.inverse_norms[m, columns])
        grad = weights if grad is None else grad.add_(weights)
        chunk.grad[:, low:high].addmm_(grad, block.features[:, low:high])
        source.grad[columns, low:high].addmm_(grad.T, chunk.features[:, low:high])


class PrivateNegatives:
    """The hard negatives [R, K, D] of a chunk's rows, each a candidate of its own query only."""

    def __init__(self, problem: Problem, chunk: Chunk) -> None:
        """Computes their scores [dims, R, K]."""
        assert problem.private is not None
        self.features = problem.private[chunk.rows].to(chunk.features.dtype)
        rows, count, size = self.features.shape
        dims = [high for _, high in problem.segments]
        flat = self.features.reshape(rows * count, size)
        self.inverse_norms = prefix_inverse_norms(flat, dims).view(len(dims), rows, count)
        self.scores = torch.empty_like(self.inverse_norms)
        product = torch.zeros_like(self.scores[0])
        for m, (low, high) in enumerate(problem.segments):
            product += torch.einsum("nkd,nd->nk", self.features[..., low:high], chunk.features[:, low:high])
            torch.mul(product, self.inverse_norms[m] * chunk.scale[m, :, None], out=self.scores[m])
        if problem.private_ids is not None and chunk.ids is not None:
            self.scores.masked_fill_(problem.private_ids[chunk.rows] == chunk.ids[:, None], _lowest(product.dtype))

    def differentiate(self, problem: Problem, chunk: Chunk) -> Tensor:
        """Their gradient [R, K, D]; adds to the chunk's own."""
        weights = exp_(self.scores - chunk.logsumexp[..., None])
        for m, factor in enumerate(problem.weights):
            weights[m] *= factor
        weighted = weights * self.scores
        chunk.weighted += weighted.sum(2)
        weights *= self.inverse_norms * chunk.scale[..., None]
        result = torch.zeros_like(self.features)  # numbers past the largest dim have no gradient
        for m, (low, high) in enumerate(problem.segments):
            grad = weights[m:].sum(0)
            chunk.grad[:, low:high] += torch.einsum("nk,nkd->nd", grad, self.features[..., low:high])
            result[..., low:high] = grad[..., None] * chunk.features[:, None, low:high]
        flat = self.features.flatten(0, 1)
        subtract_norm_part(
            result.view_as(flat), flat, self.inverse_norms.flatten(1), weighted.flatten(1), problem.segments
        )
        return result


def own_diagonal(chunk: Chunk, source: Candidates, columns: slice) -> tuple[slice, slice] | None:
    """The square of a score block whose diagonal holds the rows' own positives; None if it has none."""
    if source.first_own is None:
        return None
    offset = source.first_own + chunk.rows.start  # the column of the chunk's first row
    low, high = max(columns.start, offset), min(columns.stop, offset + len(chunk.features))
    if low >= high:
        return None
    return slice(low - offset, high - offset), slice(low - columns.start, high - columns.start)


def _left_out(chunk: Chunk, block: Block) -> Tensor | None:
    """[R, C]: where the candidate's id equals the query's positive id, its own positive aside."""
    if chunk.ids is None or block.source.ids is None:
        return None
    same = chunk.ids[:, None] == block.source.ids[None, block.columns]
    if block.own is not None:
        same[block.own].diagonal().fill_(False)
    return same


def _lowest(dtype: torch.dtype) -> float:
    """The score of a candidate that is left out: weight 0 like -inf, but finite, so that 0 times it is 0."""
    return torch.finfo(dtype).min / 4
