"""The torch backend of InfoNCE: all Matryoshka dims from one pass, loss and gradient from one sweep over the rows.

With q, c raw features, |x|_d the norm of the first d numbers and s^d_ij = (q_i.c_j)[:d] / (|q_i|_d |c_j|_d t):
- (q.c)[:d] is a running sum over the segments between neighbouring dims, so all s^d cost one product of full width;
- a chunk holds whole rows, so its logsumexp is known and G^d = dL/ds^d follows at once;
- the segment that ends at dim m needs H_m = sum over d >= m of G^d / (|q|_d |c|_d t): dq[seg] = H_m c[seg], and
  dc[seg] = H_m^T q[seg], again two products of full width for all dims;
- the norms add -q_i[seg] sum_{d >= m} a_i^d / |q_i|_d^2 with a_i^d = sum_j G^d_ij s^d_ij; the same over columns for c.
That is 3 products of 2 N M D in all, and only chunk rows x candidates x dims numbers at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import _checks
from ._norms import inverse, prefix_inverse_norms, subtract_norm_part
from ._numerics import exp_, logsumexp

# Bound on everything here but inputs, gradients and O(N + M) statistics.
WORKSPACE_BYTES = 256 << 20
BLOCK_COLUMNS = 2048
MAX_CHUNK_ROWS = 1024


@dataclass
class Candidates:
    """A set of candidates that all queries share: features [m, D], and what is collected for them."""

    features: Tensor
    ids: Tensor | None  # [m] int64
    first_own: int | None  # the column of query 0's own positive; None if these are not the positives
    inverse_norms: Tensor  # [dims, m]
    grad: Tensor  # [m, D], empty without gradients
    weighted: Tensor  # b_j^d [dims, m]: sum_i G s


@dataclass
class Problem:
    """What all chunks of rows have in common."""

    segments: list[tuple[int, int]]
    weights: Sequence[float]
    temperature: Tensor
    total: int  # queries of all processes: the mean's divisor
    with_gradients: bool
    sources: list[Candidates]


@dataclass
class Chunk:
    """Some rows of queries, in the accumulation dtype, with running statistics per dim."""

    start: int
    features: Tensor  # [R, D]
    ids: Tensor | None  # [R] int64
    inverse_norms: Tensor  # [dims, R]
    logsumexp: Tensor  # [dims, R]
    own: Tensor  # [dims, R] the own positive's score
    grad: Tensor  # [R, D]
    weighted: Tensor  # a_i^d [dims, R]


def sweep(
    queries: Tensor,
    positives: Tensor,
    shared: Tensor | None,
    private: Tensor | None,
    temperature: Tensor,
    query_ids: Tensor | None,
    positive_ids: Tensor | None,
    shared_ids: Tensor | None,
    private_ids: Tensor | None,
    dims: Sequence[int],
    weights: Sequence[float],
    first_positive: int,
    total: int,
    with_gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss per dim, gradients of queries, positives, shared, private and temperature; empty where not asked for).

    queries [N, D]; positives [P, D], query i's own at row first_positive + i; shared [S, D] candidates of all queries;
    private [N, K, D]; ids int64 [N], [P], [S], [N, K]; dims rising; losses are sums over the rows here / total.
    """
    if temperature.device.type == "cpu":
        _checks.temperature_value(temperature.item())
    dtype = _checks.accumulation_dtype(queries.dtype)
    segments = list(zip([0, *dims[:-1]], dims, strict=True))
    sources = [_candidates(positives, positive_ids, first_positive, segments, with_gradients)]
    if shared is not None:
        sources.append(_candidates(shared, shared_ids, None, segments, with_gradients))
    tau = temperature.to(device=queries.device, dtype=dtype)
    problem = Problem(segments, weights, tau, total, with_gradients, sources)
    losses, sum_weighted = torch.zeros(len(dims), dtype=dtype, device=queries.device), torch.zeros_like(tau)
    grad_queries, grad_private = (_gradient(x, with_gradients, queries) for x in (queries, private))
    workspace, step = _workspace(problem, queries, private)
    for start in range(0, queries.shape[0], step):
        rows = slice(start, min(start + step, queries.shape[0]))
        chunk = _chunk(queries, query_ids, rows, problem)
        extra = None
        if private is not None:
            extra_ids = None if private_ids is None else private_ids[rows]
            extra = PrivateNegatives(private[rows], extra_ids, chunk, problem)
        _score(chunk, problem, workspace)
        losses += (chunk.logsumexp - chunk.own).sum(1) / total
        if with_gradients:
            _differentiate(chunk, problem, workspace)
            if extra is not None:
                grad_private[rows] = extra.differentiate(chunk, problem)
            subtract_norm_part(chunk.grad, chunk.features, chunk.inverse_norms, chunk.weighted, segments)
            grad_queries[rows] = chunk.grad
            sum_weighted += chunk.weighted.sum()
    for source in sources if with_gradients else []:
        subtract_norm_part(source.grad, source.features, source.inverse_norms, source.weighted, segments)
    kept = _checks.kept_gradient_dtype(queries.dtype)
    grads = [source.grad.to(kept) for source in sources] + [queries.new_empty(0, dtype=kept)]
    grad_temperature = (-sum_weighted / tau).to(temperature.device, temperature.dtype)
    return losses, grad_queries, grads[0], grads[1], grad_private, grad_temperature


def negative_scores(queries: Tensor, negatives: Tensor) -> Tensor:
    """cos(query, each of its own hard negatives): [N, K] from [N, D] and [N, K, D]."""
    dtype = _checks.accumulation_dtype(queries.dtype)
    step = max(1, WORKSPACE_BYTES // (4 * 8 * max(1, negatives.shape[1] * negatives.shape[2])))
    parts = []
    for query, negative in zip(queries.split(step), negatives.split(step), strict=True):
        query, negative = query.to(dtype), negative.to(dtype)
        scale = inverse(query.square().sum(-1))[:, None] * inverse(negative.square().sum(-1))
        parts.append(torch.einsum("nd,nkd->nk", query, negative) * scale)
    return torch.cat(parts)


def _score(chunk: Chunk, problem: Problem, workspace: Tensor | None) -> None:
    """Adds every shared candidate to the chunk's logsumexp; with a workspace, leaves the scores there."""
    for source, columns, block, stored in _blocks(chunk, problem, workspace):
        left_out = _left_out(chunk, source, columns)
        own = _own_diagonal(chunk, source, columns)
        product = chunk.features.new_zeros(len(chunk.features), len(block))
        for m, (low, high) in enumerate(problem.segments):
            product.addmm_(chunk.features[:, low:high], block[:, low:high].T)
            scores = torch.empty_like(product) if stored is None else stored[m]
            torch.mul(product, (chunk.inverse_norms[m] / problem.temperature)[:, None], out=scores)
            scores.mul_(source.inverse_norms[m, columns])
            if left_out is not None:
                scores.masked_fill_(left_out, _lowest(scores.dtype))
            chunk.logsumexp[m] = torch.logaddexp(chunk.logsumexp[m], logsumexp(scores))
            if own is not None:
                chunk.own[m, own[0]] = scores[own].diagonal()


def _differentiate(chunk: Chunk, problem: Problem, workspace: Tensor | None) -> None:
    """Adds the chunk's part of the gradients, but for the norms', and of their weighted sums (a, b above)."""
    for source, columns, block, stored in _blocks(chunk, problem, workspace):
        assert stored is not None
        own = _own_diagonal(chunk, source, columns)
        grad: Tensor | None = None  # H_m
        for m in reversed(range(len(problem.segments))):
            low, high = problem.segments[m]
            weights = exp_(stored[m] - chunk.logsumexp[m][:, None])
            if own is not None:
                weights[own].diagonal().sub_(1)
            weights.mul_(problem.weights[m] / problem.total)
            stored[m].mul_(weights)
            chunk.weighted[m] += stored[m].sum(1)
            source.weighted[m, columns] += stored[m].sum(0)
            weights.mul_((chunk.inverse_norms[m] / problem.temperature)[:, None])
            weights.mul_(source.inverse_norms[m, columns])
            grad = weights if grad is None else grad.add_(weights)
            chunk.grad[:, low:high].addmm_(grad, block[:, low:high])
            source.grad[columns, low:high].addmm_(grad.T, chunk.features[:, low:high])


class PrivateNegatives:
    """The hard negatives [R, K, D] of a chunk's rows, each a candidate of its own query only."""

    def __init__(self, features: Tensor, ids: Tensor | None, chunk: Chunk, problem: Problem) -> None:
        """Computes their scores [dims, R, K] and starts the chunk's logsumexp with them."""
        self.features = features.to(chunk.features.dtype)
        rows, count, size = features.shape
        dims = [high for _, high in problem.segments]
        self.inverse_norms = prefix_inverse_norms(self.features.reshape(rows * count, size), dims).view(
            len(dims), rows, count
        )
        self.scores = torch.empty_like(self.inverse_norms)
        product = torch.zeros_like(self.scores[0])
        for m, (low, high) in enumerate(problem.segments):
            product += torch.einsum("nkd,nd->nk", self.features[..., low:high], chunk.features[:, low:high])
            scale = self.inverse_norms[m] * (chunk.inverse_norms[m] / problem.temperature)[:, None]
            torch.mul(product, scale, out=self.scores[m])
        if ids is not None and chunk.ids is not None:
            self.scores.masked_fill_(ids == chunk.ids[:, None], _lowest(product.dtype))
        chunk.logsumexp.copy_(self.scores.logsumexp(2))

    def differentiate(self, chunk: Chunk, problem: Problem) -> Tensor:
        """Their gradient [R, K, D]; adds to the chunk's own."""
        weights = exp_(self.scores - chunk.logsumexp[..., None])
        for m, weight in enumerate(problem.weights):
            weights[m] *= weight / problem.total
        weighted = weights * self.scores
        chunk.weighted += weighted.sum(2)
        weights *= self.inverse_norms * (chunk.inverse_norms / problem.temperature)[..., None]
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


def _blocks(
    chunk: Chunk, problem: Problem, workspace: Tensor | None
) -> Iterator[tuple[Candidates, slice, Tensor, Tensor | None]]:
    """(source, columns, their features in the accumulation dtype, the scores' place [dims, R, columns])."""
    rows, dims, used = len(chunk.features), len(problem.segments), 0
    for source in problem.sources:
        for start in range(0, len(source.features), BLOCK_COLUMNS):
            columns = slice(start, min(start + BLOCK_COLUMNS, len(source.features)))
            width, stored = columns.stop - columns.start, None
            if workspace is not None:
                stored = workspace[used : used + dims * rows * width].view(dims, rows, width)
                used += dims * rows * width
            yield source, columns, source.features[columns].to(chunk.features.dtype), stored


def _own_diagonal(chunk: Chunk, source: Candidates, columns: slice) -> tuple[slice, slice] | None:
    """The square of a score block whose diagonal holds the rows' own positives; None if it has none."""
    if source.first_own is None:
        return None
    offset = source.first_own + chunk.start  # the column of the chunk's first row
    low, high = max(columns.start, offset), min(columns.stop, offset + len(chunk.features))
    if low >= high:
        return None
    return slice(low - offset, high - offset), slice(low - columns.start, high - columns.start)


def _left_out(chunk: Chunk, source: Candidates, columns: slice) -> Tensor | None:
    """[R, columns]: where the candidate's id equals the query's positive id, its own positive aside."""
    if chunk.ids is None or source.ids is None:
        return None
    same = chunk.ids[:, None] == source.ids[None, columns]
    own = _own_diagonal(chunk, source, columns)
    if own is not None:
        same[own].diagonal().fill_(False)
    return same


def _candidates(
    features: Tensor, ids: Tensor | None, first_own: int | None, segments: list[tuple[int, int]], with_gradients: bool
) -> Candidates:
    inverse_norms = prefix_inverse_norms(features, [high for _, high in segments])
    shape = features.shape if with_gradients else (0,)
    grad = torch.zeros(shape, dtype=inverse_norms.dtype, device=features.device)
    return Candidates(features, ids, first_own, inverse_norms, grad, torch.zeros_like(inverse_norms))


def _gradient(like: Tensor | None, with_gradients: bool, default: Tensor) -> Tensor:
    shape = like.shape if like is not None and with_gradients else (0,)
    return default.new_empty(shape, dtype=_checks.kept_gradient_dtype(default.dtype))


def _workspace(problem: Problem, queries: Tensor, private: Tensor | None) -> tuple[Tensor | None, int]:
    """(room for a chunk's scores if gradients want them, rows per chunk)."""
    dtype, size = _checks.accumulation_dtype(queries.dtype), queries.shape[1]
    columns, dims = sum(len(source.features) for source in problem.sources), len(problem.segments)
    stored = dims * columns if problem.with_gradients else 0
    negatives = 0 if private is None else private.shape[1] * (3 * size + 5 * dims)
    per_row = torch.finfo(dtype).bits // 8 * (stored + 5 * min(BLOCK_COLUMNS, columns) + 3 * size + negatives)
    upcast = 0 if queries.dtype == dtype else torch.finfo(dtype).bits // 8 * min(BLOCK_COLUMNS, columns) * size
    step = max(1, min((WORKSPACE_BYTES - upcast) // per_row, MAX_CHUNK_ROWS, queries.shape[0]))
    return (torch.empty(stored * step, dtype=dtype, device=queries.device) if stored else None), step


def _chunk(queries: Tensor, ids: Tensor | None, rows: slice, problem: Problem) -> Chunk:
    features = queries[rows].to(_checks.accumulation_dtype(queries.dtype))
    inverse_norms = prefix_inverse_norms(features, [high for _, high in problem.segments])
    return Chunk(
        rows.start,
        features,
        None if ids is None else ids[rows],
        inverse_norms,
        torch.full_like(inverse_norms, -torch.inf),
        torch.zeros_like(inverse_norms),
        torch.zeros_like(features) if problem.with_gradients else features.new_empty(0),
        torch.zeros_like(inverse_norms),
    )


def _lowest(dtype: torch.dtype) -> float:
    """The score of a candidate that is left out: weight 0 like -inf, but finite, so that 0 times it is 0."""
    return torch.finfo(dtype).min / 4
