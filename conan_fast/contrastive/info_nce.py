"""The losses: InfoNCE with in-batch and hard negatives (eq. 1) and, from `cosent.py`, CoSENT (eq. 2).

Both know all Matryoshka prefixes at once. This file checks the arguments of info_nce and ties the loss to its gradient;
a backend such as `_info_nce_torch.py` computes both. Candidates of other processes come by `gather.py` or `_ring.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _backends, _checks
from . import autograd
from .batch import Batch
from .distributed import gather, ring
from .kernel_backend.backend import NativeInfoNCE
from .torch_backend import passes as torch_passes

# A backend has `sweep`, `statistics` and `gradients` of a Batch, and `negative_scores`, see _info_nce_torch.py.
NATIVE = {name: NativeInfoNCE(name) for name in ("cuda", "emulated")}
IMPLEMENTATIONS: dict[str, Any] = {"torch": torch_passes, **NATIVE}
NEGATIVE_SCOPES = ("shared", "private")

torch.library.define(
    "conan_fast::info_nce_sweep",
    "(Tensor queries, Tensor positives, Tensor? shared, Tensor? private, Tensor temperature, Tensor? query_ids, "
    "Tensor? positive_ids, Tensor? shared_ids, Tensor? private_ids, int[] dims, float[] weights, "
    "SymInt first_positive, SymInt total, bool with_gradients, str backend) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@torch.library.impl("conan_fast::info_nce_sweep", "CompositeExplicitAutograd")
def _sweep(queries: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    with torch.no_grad(), torch.autocast(queries.device.type, enabled=False):
        *batch, with_gradients, backend = arguments
        out: tuple[Tensor, ...] = IMPLEMENTATIONS[backend].sweep(Batch(queries, *batch), with_gradients)
        return out


@torch.library.register_fake("conan_fast::info_nce_sweep")
def _sweep_shapes(
    queries: Tensor, positives: Tensor, shared: Tensor | None, private: Tensor | None, temperature: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    dims, with_gradients = rest[4], rest[8]
    losses = queries.new_empty(len(dims), dtype=_checks.accumulation_dtype(queries.dtype))
    features = (queries, positives, shared, private)
    kept = _checks.kept_gradient_dtype(queries.dtype)
    grads = (queries.new_empty(x.shape if with_gradients and x is not None else 0, dtype=kept) for x in features)
    return losses, *grads, temperature.new_empty(())


torch.library.define(
    "conan_fast::info_nce_negative_scores", "(Tensor queries, Tensor negatives, str backend) -> Tensor"
)


@torch.library.impl("conan_fast::info_nce_negative_scores", "CompositeExplicitAutograd")
def _negative_scores(queries: Tensor, negatives: Tensor, backend: str) -> Tensor:
    with torch.no_grad(), torch.autocast(queries.device.type, enabled=False):
        scores: Tensor = IMPLEMENTATIONS[backend].negative_scores(queries, negatives)
        return scores


@torch.library.register_fake("conan_fast::info_nce_negative_scores")
def _negative_scores_shape(queries: Tensor, negatives: Tensor, backend: str) -> Tensor:
    return queries.new_empty(negatives.shape[:2], dtype=_checks.accumulation_dtype(queries.dtype))


class InfoNCE(NamedTuple):
    """loss: scalar; loss_per_dim [len(dims)] and negative_scores [N, K] (None without negatives) carry no gradient."""

    loss: Tensor
    loss_per_dim: Tensor
    negative_scores: Tensor | None


class _InfoNCELoss(torch.autograd.Function):
    """The gradient is made together with the loss; backward multiplies it by the loss's own gradient."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        features, rest = arguments[:5], arguments[5:]
        losses, *grads = torch.ops.conan_fast.info_nce_sweep(*features, *rest)
        loss = autograd.weighted_sum(losses, rest[5])
        autograd.keep(ctx, features, grads)
        ctx.mark_non_differentiable(losses)
        return loss, losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        return *autograd.scaled(ctx, grads[0]), *[None] * 10


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
    dims: Matryoshka prefixes, all from one pass over the features; any distinct numbers in 1..D, default (D,).
        dim_weights: one w_d per dim, default 1 each (the loss is a sum, not a mean, over dims).
    positive_ids: int64 [N]; negative_ids: int64 [N, K], only with positive_ids. A candidate whose id equals the query's
        own positive id is left out of its denominator; the query's own positive stays.
    negative_scope: "shared", every hard negative is a candidate for every query, or "private", only for its own.
    group: torch.distributed process group whose processes each hold a part of the batch (their N may differ; all other
        arguments agree). Each computes its own queries against everybody's candidates. The loss is the mean over the
        whole batch on every process, and the gradients of local inputs are those of that loss. Parameters shared by
        the processes thus need their gradients *summed*; DDP averages them, so multiply the loss by the world size
        there. A temperature tensor counts as a local input too. All processes must call backward, with the same factor.
        Where everybody's candidates and their gradients would take more than 256 MB they are not gathered but travel
        around a ring, which costs a fourth matrix product.
    backend: on a GPU "auto" takes the CUDA kernels for bfloat16, float16 and float32, D up to 8192 and up to 32 dims
        that are multiples of 16 (docs/contrastive_kernels.md); else, with one warning that says why, torch.
    Returns InfoNCE(loss, loss_per_dim in the order of dims, negative_scores: cosine at full D), float32 (float64 for
    float64 inputs); only loss carries a gradient (first derivatives).
    Memory: inputs, their gradients, O(N + M) statistics for M candidates, and a bounded workspace; never N x M.
    Raises ValueError / TypeError naming the argument; RuntimeError for a backend that is not built.
    """
    _check(queries, positives, negatives, temperature, positive_ids, negative_ids, negative_scope, group)
    rising, weights, places = _checks.matryoshka(dims, dim_weights, queries.shape[1])
    chosen = _backends.choose(backend, queries.device, lambda name: NATIVE[name].refusal(queries, rising))
    shared = negatives.flatten(0, 1) if negatives is not None and negative_scope == "shared" else None
    private = negatives if negative_scope == "private" else None
    shared_ids = negative_ids.flatten() if negative_ids is not None and shared is not None else None
    private_ids = negative_ids if private is not None else None
    if not isinstance(temperature, Tensor):
        dtype = _checks.accumulation_dtype(queries.dtype)
        temperature = torch.full((), temperature, dtype=dtype, device=queries.device)
    features, ids = (queries, positives, shared, private, temperature), (positive_ids, shared_ids, private_ids)
    loss, losses = _loss(features, ids, rising, weights, group, chosen)
    scores = None
    if negatives is not None:
        scores = torch.ops.conan_fast.info_nce_negative_scores(queries.detach(), negatives.detach(), chosen)
    return InfoNCE(loss, torch.stack([losses[place] for place in places]), scores)


def _loss(
    features: tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor],
    ids: tuple[Tensor | None, Tensor | None, Tensor | None],
    dims: list[int],
    weights: list[float],
    group: Any,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """(loss, losses [dims]) of the whole batch; ids of positives, shared and private negatives."""
    (queries, positives, shared, private, temperature), (positive_ids, shared_ids, private_ids) = features, ids
    with_gradients = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in features)
    query_ids, first, total = positive_ids, 0, queries.shape[0]
    if group is not None:
        layout = gather.layout(group, queries, shared, private, positive_ids, shared_ids, with_gradients)
        if ring.needed(layout, queries):
            implementation = IMPLEMENTATIONS[backend]
            loss, losses = ring.RingLoss.apply(*features, *ids, dims, weights, layout, group, implementation)
            return gather.summed(loss, group), gather.summed(losses, group)
        first, total = layout.first, layout.total
        positives, shared, positive_ids, shared_ids = gather.candidates(
            group, layout, positives, shared, positive_ids, shared_ids
        )
    features, all_ids = (queries, positives, shared, private, temperature), (query_ids, positive_ids, shared_ids)
    loss, losses = _InfoNCELoss.apply(
        *features, *all_ids, private_ids, dims, weights, first, total, with_gradients, backend
    )
    if group is not None:
        loss, losses = gather.summed(loss, group), gather.summed(losses, group)
    return loss, losses


def _check(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor | None,
    temperature: float | Tensor,
    positive_ids: Tensor | None,
    negative_ids: Tensor | None,
    negative_scope: str,
    group: Any,
) -> None:
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
    if positive_ids is not None:
        _checks.ids("positive_ids", positive_ids, [rows], queries.device)
    if negative_ids is not None:
        if negatives is None or positive_ids is None:
            raise ValueError("negative_ids need negatives and positive_ids as well, got only a part of them")
        _checks.ids("negative_ids", negative_ids, negatives.shape[:2], queries.device)
    _checks.one_of("negative_scope", negative_scope, NEGATIVE_SCOPES)
    _checks.temperature(temperature, queries.device)
