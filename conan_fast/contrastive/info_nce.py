"""InfoNCE with in-batch and hard negatives (eq. 1), at all Matryoshka dims at once: arguments, and the loss of a group.

One process with all candidates goes through `autograd.py` to a backend; candidates of other processes are gathered
(`distributed/gather.py`) or, where they are too large for that, travel around a ring (`distributed/ring.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _backends, _checks
from .autograd import InfoNCELoss
from .backend import BACKENDS, KERNELS
from .batch import Batch
from .distributed import gather, ring
from .result import InfoNCE

NEGATIVE_SCOPES = ("shared", "private")


def info_nce(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.05,
    dims: Sequence[int] | None = None,
    dim_weights: Sequence[float] | None = None,
    positive_ids: Tensor | None = None,
    negative_ids: Tensor | None = None,
    negative_scope: str = "shared",
    group: Any = None,
    backend: str = "auto",
) -> InfoNCE:
    """InfoNCE over cosine similarities (eq. 1): sum_d w_d mean_i -log(exp(s_ii / t) / sum_j exp(s_ij / t)).

    queries, positives: [N, D]; negatives: [N, K, D]; bfloat16, float16, float32 or float64. A zero vector has
        similarity 0 to everything and gets no gradient.
    temperature t: positive float, or 0-dim tensor, which gets a gradient if it requires one.
    dims: Matryoshka prefixes, all from one pass over the features; distinct ints in 1..D, default (D,).
        dim_weights: one w_d per dim, default 1 each (the loss is a sum, not a mean, over dims).
    positive_ids: int64 [N]; negative_ids: int64 [N, K], only with positive_ids. A candidate whose id equals the query's
        own positive id is masked, that is, not part of its denominator; the query's own positive stays.
    negative_scope: "shared", every hard negative is a candidate for every query, or "private", only for its own.
    group: torch.distributed process group whose processes each hold a part of the batch (their N may differ; all other
        arguments agree). Each computes its own queries against everybody's candidates. The loss is the mean over the
        whole batch on every process, and the gradients of local inputs are those of that loss. Parameters shared by
        the processes thus need their gradients *summed*; DDP averages them, so multiply the loss by the world size
        there. A temperature tensor counts as a local input too. All processes must call backward, with the same factor.
        Where everybody's candidates and their gradients would take more than 256 MB they are not gathered but travel
        around a ring, which costs a fourth matrix product.
    backend: on a GPU "auto" uses the CUDA kernels for bfloat16, float16 and float32, D up to 8192 and up to 32 dims
        that are multiples of 16 (docs/contrastive_kernels.md); else, with one warning that says why, torch.
    Returns InfoNCE(loss, loss_per_dim in the order of dims, negative_scores: cosine at full D), float32 (float64 for
    float64 inputs); only loss carries a gradient (first derivatives).
    Memory: inputs, their gradients, O(N + M) statistics for M candidates, and a bounded workspace; never N x M.
    Raises ValueError / TypeError naming the argument; RuntimeError for a backend that is not built.
    """
    _check_features(queries, positives, negatives, group)
    _check_ids(queries, negatives, positive_ids, negative_ids)
    _checks.one_of("negative_scope", negative_scope, NEGATIVE_SCOPES)
    _checks.temperature(temperature, queries.device)
    rising, weights, places = _checks.matryoshka(dims, dim_weights, queries.shape[1])
    chosen = _backends.choose(backend, queries.device, lambda name: KERNELS[name].unsupported(queries, rising))
    shared = negatives.flatten(0, 1) if negatives is not None and negative_scope == "shared" else None
    private = negatives if negative_scope == "private" else None
    shared_ids = negative_ids.flatten() if negative_ids is not None and shared is not None else None
    private_ids = negative_ids if private is not None else None
    if not isinstance(temperature, Tensor):
        dtype = _checks.accumulation_dtype(queries.dtype)
        temperature = torch.full((), temperature, dtype=dtype, device=queries.device)
    batch = Batch(
        queries, positives, shared, private, temperature, positive_ids, positive_ids, shared_ids, private_ids,
        rising, weights, first_positive=0, total=queries.shape[0],
    )  # fmt: skip
    loss, losses = _loss(batch, group, chosen)
    scores = None
    if negatives is not None:
        scores = torch.ops.conan_fast.info_nce_negative_scores(queries.detach(), negatives.detach(), chosen)
    return InfoNCE(loss, torch.stack([losses[place] for place in places]), scores)


def _loss(batch: Batch, group: Any, backend: str) -> tuple[Tensor, Tensor]:
    """(loss, losses [dims]) of the whole batch, of which `batch` is this process's part."""
    with_gradients = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in batch.features)
    if group is None:
        loss, losses = InfoNCELoss.apply(*batch, with_gradients, backend)
        return loss, losses
    layout = gather.layout(group, batch, with_gradients)
    if ring.needed(layout, batch.queries):
        loss, losses = ring.RingLoss.apply(*batch._replace(total=layout.total), layout, group, BACKENDS[backend])
    else:
        loss, losses = InfoNCELoss.apply(*gather.gathered(group, layout, batch), with_gradients, backend)
    return gather.summed(loss, group), gather.summed(losses, group)


def _check_features(queries: Tensor, positives: Tensor, negatives: Tensor | None, group: Any) -> None:
    _checks.tensor("queries", queries, "N, D")
    _checks.tensor("positives", positives, "N, D")
    if positives.shape != queries.shape:
        raise ValueError(f"positives must have shape {list(queries.shape)} like queries, got {list(positives.shape)}")
    _checks.floating_alike(queries=queries, positives=positives)
    rows, size = queries.shape
    if size == 0 or (rows == 0 and group is None):
        raise ValueError(f"queries must have at least one row and one column, got shape {[rows, size]}")
    if negatives is not None:
        _checks.tensor("negatives", negatives, "N, K, D")
        if negatives.shape[0] != rows or negatives.shape[2] != size:
            raise ValueError(f"negatives must have shape [{rows}, K, {size}], got {list(negatives.shape)}")
        _checks.floating_alike(queries=queries, negatives=negatives)


def _check_ids(
    queries: Tensor, negatives: Tensor | None, positive_ids: Tensor | None, negative_ids: Tensor | None
) -> None:
    if positive_ids is not None:
        _checks.ids("positive_ids", positive_ids, queries.shape[:1], queries.device)
    if negative_ids is not None:
        if negatives is None or positive_ids is None:
            raise ValueError("negative_ids need negatives and positive_ids as well, got only a part of them")
        _checks.ids("negative_ids", negative_ids, negatives.shape[:2], queries.device)
