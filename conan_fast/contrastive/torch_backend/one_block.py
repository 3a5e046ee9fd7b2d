"""InfoNCE of a small batch at one dim, in as few torch operations as possible: their number is what it costs.

For larger batches, several dims or private negatives there is score_block.py. With unit vectors q, c and G = dL/ds for
s = q.c / t, the gradient of a raw vector x is (g - u (u.g)) / |x|: g = G c / t for a query, and u its unit vector.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ... import _checks
from ..._numerics import exp_
from ..batch import Batch, Gradients, Wanted
from .score_block import lowest


def fits(batch: Batch, rows: int, columns: int) -> bool:
    """Whether this is one dim, without private negatives, and at most so many rows and columns of scores."""
    if batch.private is not None or tuple(batch.dims) != batch.queries.shape[1:]:
        return False
    count = batch.positives.shape[0] + (0 if batch.shared is None else batch.shared.shape[0])
    return 0 < batch.queries.shape[0] <= rows and count <= columns


def sweep(batch: Batch, wanted: Wanted, tau: Tensor | float) -> tuple[Tensor, Gradients]:
    """(loss per dim, gradients in the accumulation dtype). tau: the temperature, see `Inputs`."""
    dtype, first = _checks.accumulation_dtype(batch.queries.dtype), batch.first_positive
    assert first is not None
    queries, query_scale = _unit(batch.queries.to(dtype))
    raw = batch.positives if batch.shared is None else torch.cat([batch.positives, batch.shared])
    candidates, candidate_scale = _unit(raw.to(dtype))
    scores = (queries @ candidates.t()).div_(tau)
    _mask(scores, batch, first)
    log_weights = scores.log_softmax(1)
    own = log_weights.diagonal(first)
    losses = own.sum(0, keepdim=True).div_(-batch.total)
    if not any(wanted):
        return losses, Gradients()
    grad = exp_(log_weights)
    own.sub_(1)
    grad.mul_(batch.dim_weights[0] / batch.total / tau)
    found: dict[str, Tensor] = {}
    if wanted.queries:
        found["queries"] = _raw_gradient(grad @ candidates, queries, query_scale)
    count = batch.positives.shape[0]
    for name, rows in (("positives", slice(0, count)), ("shared", slice(count, None))):
        if getattr(wanted, name):
            found[name] = _raw_gradient(grad[:, rows].t() @ queries, candidates[rows], candidate_scale[rows])
    if wanted.temperature:
        found["temperature"] = -grad.mul_(scores).sum()
    return losses, Gradients(**found)


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """(x / |x|, 1 / |x| [n, 1]); both 0 for a zero vector."""
    scale = torch.linalg.vector_norm(x, dim=1, keepdim=True).reciprocal_().nan_to_num_(nan=math.nan, posinf=0.0)
    return x * scale, scale


def _raw_gradient(grad: Tensor, unit: Tensor, scale: Tensor) -> Tensor:
    """The gradient of raw vectors, in place of that of the unit vectors."""
    return grad.addcmul_(unit, (grad * unit).sum(1, keepdim=True), value=-1).mul_(scale)


def _mask(scores: Tensor, batch: Batch, first: int) -> None:
    """In place: candidates whose id equals the query's positive id, its own positive aside."""
    if batch.query_ids is None:
        return
    assert batch.positive_ids is not None
    positives = batch.query_ids[:, None] == batch.positive_ids
    positives.diagonal(first).fill_(False)
    scores[:, : positives.shape[1]].masked_fill_(positives, lowest(scores.dtype))
    if batch.shared_ids is not None:
        scores[:, positives.shape[1] :].masked_fill_(batch.query_ids[:, None] == batch.shared_ids, lowest(scores.dtype))
