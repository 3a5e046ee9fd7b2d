"""The torch backend of InfoNCE: all Matryoshka dims from one pass over the features.

`sweep` makes loss and gradient from one pass over the queries, a chunk of whole rows at a time: 3 products of 2 N M D,
and only chunk rows x candidates x dims numbers at a time. Where one process never sees all candidates at once,
`statistics` of each part (1 product) come first and `gradients` (3 products, one of them the scores anew) then.
The mathematics is in _info_nce_chunk.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ... import _checks
from ..batch import Batch
from ..norms import inverse, prefix_inverse_norms, subtract_norm_part
from .chunk import Block, Candidates, Chunk, Problem, collect, differentiate, own_diagonal, score

# Bound on everything here but inputs, gradients and O(N + M) statistics.
WORKSPACE_BYTES = 256 << 20
BLOCK_COLUMNS = 2048
MAX_CHUNK_ROWS = 1024


def sweep(batch: Batch, with_gradients: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss per dim, gradients of queries, positives, shared, private and temperature; empty where not asked for)."""
    problem = _problem(batch, with_gradients)
    losses = problem.temperature.new_zeros(len(batch.dims))
    grads = _Gradients(problem, _checks.kept_gradient_dtype(batch.queries.dtype))
    columns = sum(len(source.features) for source in problem.sources)
    workspace, step = _workspace(problem, columns if with_gradients else 0)
    for chunk in _chunks(problem, step):
        for block in _blocks(problem, chunk, workspace, whole_rows=True):
            collect(chunk, problem, block)
        losses += (chunk.logsumexp - chunk.own).sum(1) / batch.total
        if with_gradients:
            for block in _blocks(problem, chunk, workspace, whole_rows=True):
                differentiate(chunk, problem, block)
            grads.take(chunk)
    queries_grad, positives_grad, shared_grad, private_grad, temperature_grad = grads.finished()
    temperature_grad = temperature_grad.to(batch.temperature.device, batch.temperature.dtype)
    return losses, queries_grad, positives_grad, shared_grad, private_grad, temperature_grad


def statistics(batch: Batch) -> tuple[Tensor, Tensor]:
    """(logsumexp of the scores over these candidates alone, own positive's score): [dims, N], accumulation dtype.

    A score is cosine / temperature, the logarithm the natural one; -inf without candidates. The own positive's score is
    0 where it is not among these.
    """
    problem = _problem(batch, False)
    logsumexp, own = (problem.temperature.new_empty(len(batch.dims), len(batch.queries)) for _ in range(2))
    workspace, step = _workspace(problem, 0)
    for chunk in _chunks(problem, step):
        for block in _blocks(problem, chunk, workspace):
            collect(chunk, problem, block)
        logsumexp[:, chunk.rows], own[:, chunk.rows] = chunk.logsumexp, chunk.own
    return logsumexp, own


def gradients(batch: Batch, logsumexp: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What these candidates add to the gradients of (queries, positives, shared, private, temperature).

    logsumexp [dims, N]: of all candidates, these and others. Over disjoint sets of candidates, the own positive in one
    of them, the results sum up to the gradients of `sweep`. All in the accumulation dtype and on the queries' device,
    empty for shared or private None.
    """
    problem = _problem(batch, True)
    grads = _Gradients(problem, problem.temperature.dtype)
    widest = max((len(source.features) for source in problem.sources), default=0)
    workspace, step = _workspace(problem, min(BLOCK_COLUMNS, widest))
    for chunk in _chunks(problem, step):
        chunk.logsumexp = logsumexp[:, chunk.rows]
        for block in _blocks(problem, chunk, workspace):
            for _ in score(chunk, problem, block):
                pass  # into block.stored
            differentiate(chunk, problem, block)
        grads.take(chunk)
    return grads.finished()


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


class _Gradients:
    """The gradients of a problem's features and temperature, filled chunk by chunk; empty if they are not asked for."""

    def __init__(self, problem: Problem, dtype: torch.dtype) -> None:
        self.problem, self.dtype = problem, dtype
        self.queries, self.private = self._room(problem.queries), self._room(problem.private)
        self.weighted = torch.zeros_like(problem.temperature)  # sum of G s over everything

    def _room(self, like: Tensor | None) -> Tensor:
        shape = like.shape if like is not None and self.problem.with_gradients else (0,)
        return self.problem.queries.new_empty(shape, dtype=self.dtype)

    def take(self, chunk: Chunk) -> None:
        """A chunk that has seen all its candidates."""
        if chunk.private is not None:
            self.private[chunk.rows] = chunk.private.differentiate(self.problem, chunk)
        subtract_norm_part(chunk.grad, chunk.features, chunk.inverse_norms, chunk.weighted, self.problem.segments)
        self.queries[chunk.rows] = chunk.grad
        self.weighted += chunk.weighted.sum()

    def finished(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Of queries, positives, shared, private and temperature, after the last chunk."""
        problem = self.problem
        for source in problem.sources if problem.with_gradients else []:
            subtract_norm_part(source.grad, source.features, source.inverse_norms, source.weighted, problem.segments)
        of_sources = [source.grad.to(self.dtype) for source in problem.sources]
        shared = of_sources[1] if len(of_sources) > 1 else self._room(None)
        return self.queries, of_sources[0], shared, self.private, -self.weighted / problem.temperature


def _problem(batch: Batch, with_gradients: bool) -> Problem:
    dtype, temperature, dims = _checks.accumulation_dtype(batch.queries.dtype), batch.temperature, batch.dims
    if temperature.device.type == "cpu":  # by value to the device: copying it there would wait
        _checks.temperature_value(temperature.item())
        temperature = torch.full((), temperature.item(), dtype=dtype, device=batch.queries.device)
    sources = [_candidates(batch.positives, batch.positive_ids, batch.first_positive, dims, with_gradients)]
    if batch.shared is not None:
        sources.append(_candidates(batch.shared, batch.shared_ids, None, dims, with_gradients))
    return Problem(
        batch.queries,
        batch.query_ids,
        batch.private,
        batch.private_ids,
        sources,
        list(zip([0, *dims[:-1]], dims, strict=True)),
        temperature.to(dtype),
        [weight / batch.total for weight in batch.weights],
        with_gradients,
    )


def _candidates(
    features: Tensor, ids: Tensor | None, first_own: int | None, dims: Sequence[int], with_gradients: bool
) -> Candidates:
    inverse_norms = prefix_inverse_norms(features, dims)
    shape = features.shape if with_gradients else (0,)
    grad = torch.zeros(shape, dtype=inverse_norms.dtype, device=features.device)
    return Candidates(features, ids, first_own, inverse_norms, grad, torch.zeros_like(inverse_norms))


def _workspace(problem: Problem, stored_columns: int) -> tuple[Tensor | None, int]:
    """(room for a chunk's scores of so many columns, rows per chunk)."""
    queries, dtype, dims = problem.queries, problem.temperature.dtype, len(problem.segments)
    size, number = queries.shape[1], problem.temperature.element_size()
    widest = min(BLOCK_COLUMNS, sum(len(source.features) for source in problem.sources))
    stored = dims * stored_columns
    negatives = 0 if problem.private is None else problem.private.shape[1] * (3 * size + 5 * dims)
    per_row = number * (stored + 5 * widest + 3 * size + negatives)
    upcast = 0 if queries.dtype == dtype else number * widest * size
    step = max(1, min((WORKSPACE_BYTES - upcast) // per_row, MAX_CHUNK_ROWS, queries.shape[0]))
    return (torch.empty(stored * step, dtype=dtype, device=queries.device) if stored else None), step


def _chunks(problem: Problem, step: int) -> Iterator[Chunk]:
    rows = problem.queries.shape[0]
    for start in range(0, rows, step):
        yield Chunk(problem, slice(start, min(start + step, rows)))


def _blocks(problem: Problem, chunk: Chunk, workspace: Tensor | None, whole_rows: bool = False) -> Iterator[Block]:
    """All columns, a block at a time, each with its place for scores in the workspace: its own, or one for all."""
    rows, dims, used = len(chunk.features), len(problem.segments), 0
    for source in problem.sources:
        for start in range(0, len(source.features), BLOCK_COLUMNS):
            columns = slice(start, min(start + BLOCK_COLUMNS, len(source.features)))
            width, stored = columns.stop - columns.start, None
            if workspace is not None:
                numbers = dims * rows * width
                stored = workspace[used : used + numbers].view(dims, rows, width)
                used += numbers if whole_rows else 0
            features = source.features[columns].to(chunk.features.dtype)
            yield Block(source, columns, features, own_diagonal(chunk, source, columns), stored)
