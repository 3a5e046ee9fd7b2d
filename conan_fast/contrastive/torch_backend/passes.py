"""The torch backend of InfoNCE (see `Backend`): all Matryoshka dims from one pass over the features.

`sweep` makes loss and gradients from one pass over the queries, a chunk of whole rows at a time: 3 GEMMs of 2 N M D
FLOP (one for each of scores, queries' and candidates' gradients), and only chunk rows x candidates x dims elements at a
time. Where one process never sees all candidates at once, `statistics` of each part (1 GEMM) come first and `gradients`
(3 GEMMs, one of them the scores anew) then. The mathematics is in score_block.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ... import _checks
from ..batch import Batch, Gradients, Wanted
from ..norms import inverse, prefix_inverse_norms, subtract_norm_part
from . import one_block
from .score_block import Candidates, Inputs, QueryChunk, ScoreBlock

# Bound on everything here but inputs, gradients and O(N + M) statistics.
WORKSPACE_BYTES = 256 << 20
BLOCK_COLUMNS = 2048
# At 2,048 pairs (D = 384, 5 dims, one thread of an EPYC) 256 rows were as fast as 1,024, with a quarter of the memory.
CPU_CHUNK_ROWS = 256
GPU_CHUNK_ROWS = 1024


def sweep(batch: Batch, wanted: Wanted) -> tuple[Tensor, Gradients]:
    """(loss per dim, gradients) of whole rows at once."""
    kept = _checks.kept_gradient_dtype(batch.queries.dtype)
    if one_block.fits(batch, _most_rows(batch.queries.device), BLOCK_COLUMNS):
        losses, grads = one_block.sweep(batch, wanted, _temperature(batch))
    else:
        losses, grads = _sweep_by_chunks(batch, wanted, kept)
    *features, tau = grads
    if tau is not None:
        tau = tau.to(batch.temperature.device, batch.temperature.dtype)
    return losses, Gradients(*[*[x if x is None or x.dtype == kept else x.to(kept) for x in features], tau])


def _sweep_by_chunks(batch: Batch, wanted: Wanted, kept: torch.dtype) -> tuple[Tensor, Gradients]:
    inputs = _inputs(batch, wanted)
    grads, losses = _GradientRoom(inputs, kept), []
    step, keep = _plan(inputs, sum(part.features.shape[0] for part in inputs.candidates) if any(wanted) else 0)
    for chunk in _chunks(inputs, step):
        blocks = []
        for block in _blocks(chunk):
            block.collect(keep)
            if any(wanted):
                blocks.append(block)
        assert chunk.logsumexp is not None and chunk.own_scores is not None
        losses.append((chunk.logsumexp - chunk.own_scores).sum(1))
        if any(wanted):
            for block in blocks:
                block.differentiate()
            grads.take(chunk)
    if not losses:  # no queries
        return inputs.queries.new_zeros(len(batch.dims), dtype=inputs.dtype), grads.finished()
    return sum(losses[1:], losses[0]) / batch.total, grads.finished()


def statistics(batch: Batch) -> tuple[Tensor, Tensor]:
    """(logsumexp, own positives' scores), both [dims, N]."""
    inputs = _inputs(batch, Wanted())
    shape = len(batch.dims), len(batch.queries)
    logsumexp = batch.queries.new_full(shape, -torch.inf, dtype=inputs.dtype)
    own_scores = torch.zeros_like(logsumexp)
    step, _ = _plan(inputs, 0)
    for chunk in _chunks(inputs, step):
        for block in _blocks(chunk):
            block.collect(keep=False)
        if chunk.logsumexp is not None:
            logsumexp[:, chunk.rows] = chunk.logsumexp
        if chunk.own_scores is not None:
            own_scores[:, chunk.rows] = chunk.own_scores
    return logsumexp, own_scores


def gradients(batch: Batch, logsumexp: Tensor, wanted: Wanted) -> Gradients:
    """These candidates' part of the wanted gradients, in the accumulation dtype."""
    inputs = _inputs(batch, wanted)
    grads = _GradientRoom(inputs, inputs.dtype)
    step, _ = _plan(inputs, 0)
    for chunk in _chunks(inputs, step):
        chunk.logsumexp = logsumexp[:, chunk.rows]
        for block in _blocks(chunk):
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
    """The wanted gradients of all inputs, filled chunk by chunk."""

    def __init__(self, inputs: Inputs, dtype: torch.dtype) -> None:
        self.inputs, self.dtype = inputs, dtype
        self.queries = self._room(inputs.queries, inputs.wanted.queries)
        self.private = self._room(inputs.private, inputs.wanted.private)
        self.radial: Tensor | None = None  # sum of G s over everything

    def _room(self, like: Tensor | None, wanted: bool) -> Tensor | None:
        return torch.empty(like.shape, dtype=self.dtype, device=like.device) if wanted and like is not None else None

    def take(self, chunk: QueryChunk) -> None:
        """A chunk that has seen all its candidates."""
        private_grad = chunk.finish()
        if self.private is not None and private_grad is not None:
            self.private[chunk.rows] = private_grad
        if self.queries is not None and chunk.grad is not None:
            self.queries[chunk.rows] = chunk.grad
        if self.inputs.wanted.temperature:
            radial = chunk.radial.sum()
            self.radial = radial if self.radial is None else self.radial + radial

    def finished(self) -> Gradients:
        """After the last chunk; the temperature's on the queries' device."""
        inputs = self.inputs
        of_candidates: list[Tensor | None] = []
        for part in inputs.candidates:
            if part.grad is None or part.radial is None:
                of_candidates.append(None)
                continue
            radial = part.radial * inputs.loss_weights
            subtract_norm_part(part.grad, part.features, part.inverse_norms, radial, inputs.dims)
            of_candidates.append(part.grad.to(self.dtype))
        positives, shared = (*of_candidates, None)[:2]
        tau = None
        if inputs.wanted.temperature:
            radial = inputs.queries.new_zeros((), dtype=inputs.dtype) if self.radial is None else self.radial
            tau = -radial / inputs.temperature
        return Gradients(self.queries, positives, shared, self.private, tau)


def _inputs(batch: Batch, wanted: Wanted) -> Inputs:
    dtype = _checks.accumulation_dtype(batch.queries.dtype)

    def candidates(features: Tensor, ids: Tensor | None, first_own: int | None, wants_grad: bool) -> Candidates:
        inverse_norms, grad, radial = prefix_inverse_norms(features, batch.dims), None, None
        if wants_grad:
            grad = torch.zeros(features.shape, dtype=dtype, device=features.device)
            radial = torch.zeros_like(inverse_norms)
        return Candidates(features, ids, first_own, inverse_norms, grad, radial)

    all_candidates = [candidates(batch.positives, batch.positive_ids, batch.first_positive, wanted.positives)]
    if batch.shared is not None:
        all_candidates.append(candidates(batch.shared, batch.shared_ids, None, wanted.shared))
    return Inputs(
        batch.queries,
        batch.query_ids,
        batch.private,
        batch.private_ids,
        all_candidates,
        batch.dims,
        dtype,
        _temperature(batch),
        _loss_weights(batch, dtype),
        wanted,
    )


def _temperature(batch: Batch) -> Tensor | float:
    """See Inputs. By value if it is on the host: copying it to a device would wait."""
    if batch.temperature.device.type != "cpu":
        return _checks.temperature_tensor(batch.temperature).to(_checks.accumulation_dtype(batch.queries.dtype))
    temperature = batch.temperature.item()
    _checks.temperature_value(temperature)
    return temperature


def _loss_weights(batch: Batch, dtype: torch.dtype) -> Tensor | float:
    """See Inputs. The tensor is made on the device, because copying it there would wait."""
    weights = [weight / batch.total for weight in batch.dim_weights]
    if len(set(weights)) == 1:
        return weights[0]
    device = batch.queries.device
    return torch.stack([torch.full((1,), weight, dtype=dtype, device=device) for weight in weights])


def _plan(inputs: Inputs, kept_columns: int) -> tuple[int, bool]:
    """(rows per chunk, whether their exponentials can be kept), where the scores of so many columns are kept."""
    dims, size, element = len(inputs.dims), inputs.queries.shape[1], inputs.dtype.itemsize
    widest = min(BLOCK_COLUMNS, sum(part.features.shape[0] for part in inputs.candidates))
    negatives = 0 if inputs.private is None else inputs.private.shape[1] * (3 * size + 5 * dims)
    upcast = 0 if inputs.queries.dtype == inputs.dtype else widest * size
    most = min(_most_rows(inputs.queries.device), inputs.queries.shape[0])

    def rows(kept: int) -> int:
        """At a time there are three blocks at most, beside those that are kept."""
        per_row = dims * (kept + 3 * widest) + 3 * size + negatives
        return max(1, min((WORKSPACE_BYTES // element - upcast) // per_row, most))

    keep = rows(2 * kept_columns) == most
    return rows((1 + keep) * kept_columns), keep


def _most_rows(device: torch.device) -> int:
    """Of a chunk."""
    return CPU_CHUNK_ROWS if device.type == "cpu" else GPU_CHUNK_ROWS


def _chunks(inputs: Inputs, step: int) -> Iterator[QueryChunk]:
    rows = inputs.queries.shape[0]
    for start in range(0, rows, step):
        yield QueryChunk(inputs, slice(start, min(start + step, rows)))


def _blocks(chunk: QueryChunk) -> Iterator[ScoreBlock]:
    """All columns, a block at a time."""
    for candidates in chunk.inputs.candidates:
        count = candidates.features.shape[0]
        for start in range(0, count, BLOCK_COLUMNS):
            yield ScoreBlock(chunk, candidates, slice(start, min(start + BLOCK_COLUMNS, count)))
