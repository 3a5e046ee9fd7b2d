"""The torch backend of InfoNCE (see `Backend`): all Matryoshka dims from one pass over the features.

`sweep` makes loss and gradient from one pass over the queries, a chunk of whole rows at a time: 3 GEMMs of 2 N M D
FLOP, and only chunk rows x candidates x dims elements at a time. Where one process never sees all candidates at once,
`statistics` of each part (1 GEMM) come first and `gradients` (3 GEMMs, one of them the scores anew) then.
The mathematics is in score_block.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ... import _checks
from ..batch import Batch, Gradients, dim_slices
from ..norms import inverse, prefix_inverse_norms, subtract_norm_part
from .score_block import Candidates, Inputs, QueryChunk, ScoreBlock

# Bound on everything here but inputs, gradients and O(N + M) statistics.
WORKSPACE_BYTES = 256 << 20
BLOCK_COLUMNS = 2048
MAX_CHUNK_ROWS = 1024


def sweep(batch: Batch, with_gradients: bool) -> tuple[Tensor, Gradients]:
    """(loss per dim, gradients) of whole rows at once."""
    inputs = _inputs(batch, with_gradients)
    losses = inputs.temperature.new_zeros(len(batch.dims))
    grads = _GradientRoom(inputs, _checks.kept_gradient_dtype(batch.queries.dtype))
    columns = sum(len(candidates.features) for candidates in inputs.candidates)
    workspace, step = _workspace(inputs, columns if with_gradients else 0)
    for chunk in _chunks(inputs, step):
        for block in _blocks(chunk, workspace, whole_rows=True):
            block.collect()
        losses += (chunk.logsumexp - chunk.own_scores).sum(1) / batch.total
        if with_gradients:
            for block in _blocks(chunk, workspace, whole_rows=True):
                block.differentiate()
            grads.take(chunk)
    found = grads.finished()
    return losses, found._replace(temperature=found.temperature.to(batch.temperature.device, batch.temperature.dtype))


def statistics(batch: Batch) -> tuple[Tensor, Tensor]:
    """(logsumexp, own positives' scores), both [dims, N]."""
    inputs = _inputs(batch, False)
    logsumexp, own_scores = (inputs.temperature.new_empty(len(batch.dims), len(batch.queries)) for _ in range(2))
    workspace, step = _workspace(inputs, 0)
    for chunk in _chunks(inputs, step):
        for block in _blocks(chunk, workspace):
            block.collect()
        logsumexp[:, chunk.rows], own_scores[:, chunk.rows] = chunk.logsumexp, chunk.own_scores
    return logsumexp, own_scores


def gradients(batch: Batch, logsumexp: Tensor) -> Gradients:
    """These candidates' part of the gradients, in the accumulation dtype."""
    inputs = _inputs(batch, True)
    grads = _GradientRoom(inputs, inputs.temperature.dtype)
    widest = max((len(candidates.features) for candidates in inputs.candidates), default=0)
    workspace, step = _workspace(inputs, min(BLOCK_COLUMNS, widest))
    for chunk in _chunks(inputs, step):
        chunk.logsumexp = logsumexp[:, chunk.rows]
        for block in _blocks(chunk, workspace):
            for _ in block.scores():
                pass  # into block.kept
            block.differentiate()
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


class _GradientRoom:
    """The gradients of all inputs, filled chunk by chunk; empty if they are not asked for."""

    def __init__(self, inputs: Inputs, dtype: torch.dtype) -> None:
        self.inputs, self.dtype = inputs, dtype
        self.queries, self.private = self._room(inputs.queries), self._room(inputs.private)
        self.radial = torch.zeros_like(inputs.temperature)  # sum of G s over everything

    def _room(self, like: Tensor | None) -> Tensor:
        shape = like.shape if like is not None and self.inputs.with_gradients else (0,)
        return self.inputs.queries.new_empty(shape, dtype=self.dtype)

    def take(self, chunk: QueryChunk) -> None:
        """A chunk that has seen all its candidates."""
        private_grad = chunk.finish()
        if private_grad is not None:
            self.private[chunk.rows] = private_grad
        self.queries[chunk.rows] = chunk.grad
        self.radial += chunk.radial.sum()

    def finished(self) -> Gradients:
        """After the last chunk; the temperature's on the queries' device."""
        inputs = self.inputs
        for part in inputs.candidates if inputs.with_gradients else []:
            subtract_norm_part(part.grad, part.features, part.inverse_norms, part.radial, inputs.slices)
        of_candidates = [part.grad.to(self.dtype) for part in inputs.candidates]
        shared = of_candidates[1] if len(of_candidates) > 1 else self._room(None)
        return Gradients(self.queries, of_candidates[0], shared, self.private, -self.radial / inputs.temperature)


def _inputs(batch: Batch, with_gradients: bool) -> Inputs:
    dtype, temperature = _checks.accumulation_dtype(batch.queries.dtype), batch.temperature
    if temperature.device.type == "cpu":  # by value to the device: copying it there would wait
        _checks.temperature_value(temperature.item())
        temperature = torch.full((), temperature.item(), dtype=dtype, device=batch.queries.device)

    def candidates(features: Tensor, ids: Tensor | None, first_own: int | None) -> Candidates:
        inverse_norms = prefix_inverse_norms(features, batch.dims)
        shape = features.shape if with_gradients else (0,)
        grad = torch.zeros(shape, dtype=inverse_norms.dtype, device=features.device)
        return Candidates(features, ids, first_own, inverse_norms, grad, torch.zeros_like(inverse_norms))

    shared = [] if batch.shared is None else [candidates(batch.shared, batch.shared_ids, None)]
    return Inputs(
        batch.queries,
        batch.query_ids,
        batch.private,
        batch.private_ids,
        [candidates(batch.positives, batch.positive_ids, batch.first_positive), *shared],
        dim_slices(batch.dims),
        temperature.to(dtype),
        [weight / batch.total for weight in batch.dim_weights],
        with_gradients,
    )


def _workspace(inputs: Inputs, kept_columns: int) -> tuple[Tensor | None, int]:
    """(room for a chunk's scores of so many columns, rows per chunk)."""
    queries, dtype, dims = inputs.queries, inputs.temperature.dtype, len(inputs.slices)
    size, element = queries.shape[1], inputs.temperature.element_size()
    widest = min(BLOCK_COLUMNS, sum(len(candidates.features) for candidates in inputs.candidates))
    kept = dims * kept_columns
    negatives = 0 if inputs.private is None else inputs.private.shape[1] * (3 * size + 5 * dims)
    per_row = element * (kept + 5 * widest + 3 * size + negatives)
    upcast = 0 if queries.dtype == dtype else element * widest * size
    step = max(1, min((WORKSPACE_BYTES - upcast) // per_row, MAX_CHUNK_ROWS, queries.shape[0]))
    return (torch.empty(kept * step, dtype=dtype, device=queries.device) if kept else None), step


def _chunks(inputs: Inputs, step: int) -> Iterator[QueryChunk]:
    rows = inputs.queries.shape[0]
    for start in range(0, rows, step):
        yield QueryChunk(inputs, slice(start, min(start + step, rows)))


def _blocks(chunk: QueryChunk, workspace: Tensor | None, whole_rows: bool = False) -> Iterator[ScoreBlock]:
    """All columns, a block at a time, each with its own place in the workspace, or (not whole_rows) one for all."""
    used = 0
    for candidates in chunk.inputs.candidates:
        for start in range(0, len(candidates.features), BLOCK_COLUMNS):
            columns = slice(start, min(start + BLOCK_COLUMNS, len(candidates.features)))
            block = ScoreBlock(chunk, candidates, columns, None if workspace is None else workspace[used:])
            if block.kept is not None and whole_rows:
                used += block.kept.numel()
            yield block
