"""InfoNCE with in-batch and hard negatives (eq. 1), at all Matryoshka dims at once: arguments and results.

One process with all candidates goes through `autograd.py` to a backend. In a group (`distributed/loss.py`) the
candidates of other processes are gathered (`distributed/gather.py`) or, where they are too large for that, travel
around a ring (`distributed/ring.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _autocast, _backends, _checks
from .autograd import EagerInfoNCELoss, InfoNCELoss, wanted_gradients
from .backend import KERNELS
from .batch import Batch
from .distributed.layout import Agreed, layout, report_refusal
from .distributed.loss import GroupLoss
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

    queries, positives: [N, D]; negatives: [N, K, D]; bfloat16, float16, float32 or float64; under autocast perhaps of
        different dtypes, of which the widest counts. A zero vector has similarity 0 to everything and no gradient.
    temperature t: positive finite float, or 0-dim tensor, which gets a gradient if it requires one. The loss is NaN for
        one on a GPU, whose value is not read, that is not positive and finite.
    dims: Matryoshka prefixes, all from one pass over the features; distinct ints in 1..D, default (D,).
        dim_weights: one w_d per dim, default 1 each (the loss is a sum, not a mean, over dims).
    positive_ids: int64 [N]; negative_ids: int64 [N, K], only with positive_ids. A candidate whose id equals the query's
        own positive id is masked, that is, not part of its denominator; the query's own positive stays.
    negative_scope: "shared", every hard negative is a candidate for every query, or "private", only for its own.
    group: torch.distributed process group whose processes each hold a part of the batch. Each computes its own queries
        against everybody's candidates. The loss is the mean over the whole batch on every process, and the gradients of
        local inputs are those of that loss. Parameters shared by the processes thus need their gradients *summed*; DDP
        averages them, so multiply the loss by the world size there. A temperature tensor counts as a local input too.
        All processes must scale their loss by the same factor. N, K and the values of temperature tensors may differ.
        If anything else does, or if one process's arguments are refused, all raise ValueError (but wait for a process
        that does not call info_nce, or whose queries are not a tensor on the group's device). Candidates that would
        take more than 256 MB, with their gradients, are not gathered but travel around a ring, which costs a fourth
        matrix product. torch.compile breaks its graph once, at this call.
    backend: on a GPU "auto" uses the CUDA kernels for bfloat16, float16 and float32, D up to 8192 and up to 32 dims
        that are multiples of 16 (docs/contrastive_kernels.md); else, with one warning that says why, torch.
    Returns InfoNCE(loss, loss_per_dim in the order of dims, negative_scores: cosine at full D), float32 (float64 for
    float64 inputs). Only loss carries a gradient. First derivatives: by backward, torch.func.grad and vjp; only those
    that are asked for are computed. Second and forward-mode derivatives and torch.vmap raise RuntimeError.
    Memory: inputs, their gradients, O(N + M) statistics for M candidates, and a bounded workspace; never N x M.
    Raises ValueError / TypeError naming the argument; RuntimeError for a backend that is not built.
    """
    queries, positives, negatives = _autocast.promoted(queries, positives, negatives)
    arguments = _Arguments(
        queries, positives, negatives, temperature, dims, dim_weights, positive_ids, negative_ids, negative_scope,
        backend,
    )  # fmt: skip
    if group is not None:
        return _over_group(arguments, group)
    batch, places, chosen = _checked(arguments, allow_no_rows=False)
    function = InfoNCELoss if torch.compiler.is_compiling() else EagerInfoNCELoss
    loss, losses, *_ = function.apply(*_inputs(batch), wanted_gradients(batch), chosen)
    return _result(loss, losses, places, arguments, chosen)


class _Arguments(NamedTuple):
    """Those of info_nce but for the group."""

    queries: Tensor
    positives: Tensor
    negatives: Tensor | None
    temperature: float | Tensor
    dims: Sequence[int] | None
    dim_weights: Sequence[float] | None
    positive_ids: Tensor | None
    negative_ids: Tensor | None
    negative_scope: str
    backend: str


@torch.compiler.disable
def _over_group(arguments: _Arguments, group: Any) -> InfoNCE:
    """The loss of the whole batch, of which the arguments are this process's part."""
    try:
        batch, places, chosen = _checked(arguments, allow_no_rows=True)
    except (TypeError, ValueError, RuntimeError):
        report_refusal(group, arguments.queries)
        raise
    wanted, temperature = wanted_gradients(batch), arguments.temperature
    agreed = Agreed(
        batch.queries.shape[1],
        batch.queries.dtype,
        "none" if arguments.negatives is None else arguments.negative_scope,
        batch.positive_ids is not None,
        arguments.negative_ids is not None,
        tuple(batch.dims),
        tuple(batch.dim_weights),
        "a tensor" if isinstance(temperature, Tensor) else float(temperature),
    )
    sizes = layout(group, batch, wanted, agreed)
    loss, losses, *_ = GroupLoss.apply(*_inputs(batch), wanted, (sizes, group, chosen))
    return _result(loss, losses, places, arguments, chosen)


def _checked(a: _Arguments, allow_no_rows: bool) -> tuple[Batch, list[int], str]:
    """(the batch, the place of each of the caller's dims in it, the backend's name)."""
    _check_features(a.queries, a.positives, a.negatives, allow_no_rows)
    _check_ids(a.queries, a.negatives, a.positive_ids, a.negative_ids)
    _checks.one_of("negative_scope", a.negative_scope, NEGATIVE_SCOPES)
    _checks.temperature(a.temperature, a.queries.device)
    rows, size = a.queries.shape
    rising, weights, places = _checks.matryoshka(a.dims, a.dim_weights, size)
    chosen = _backends.choose(a.backend, a.queries.device, lambda name: KERNELS[name].unsupported(a.queries, rising))
    shared, shared_ids, private, private_ids = None, None, a.negatives, a.negative_ids
    if a.negatives is not None and a.negative_scope == "shared":
        shared, private = a.negatives.flatten(0, 1), None
        shared_ids, private_ids = None if a.negative_ids is None else a.negative_ids.flatten(), None
    temperature = a.temperature if isinstance(a.temperature, Tensor) else _as_tensor(a.temperature, a.queries)
    batch = Batch(
        a.queries, a.positives, shared, private, temperature, a.positive_ids, a.positive_ids, shared_ids, private_ids,
        rising, weights, first_positive=0, total=rows,
    )  # fmt: skip
    return batch, places, chosen


def _as_tensor(temperature: float, queries: Tensor) -> Tensor:
    """0-dim, in the accumulation dtype on the queries' device."""
    dtype = _checks.accumulation_dtype(queries.dtype)
    if torch.compiler.is_compiling():  # torch.full would make each value a constant of a graph of its own
        return torch.ones((), dtype=dtype, device=queries.device) * temperature
    return torch.full((), temperature, dtype=dtype, device=queries.device)


def _inputs(batch: Batch) -> tuple[Any, ...]:
    """The first arguments of InfoNCELoss: each tensor once, which torch.compile asks for."""
    if batch.positives is batch.queries:
        batch = batch._replace(positives=batch.positives.view_as(batch.positives))
    ids = batch.positive_ids, batch.shared_ids, batch.private_ids
    return *batch.features, *ids, batch.dims, batch.dim_weights


def _result(loss: Tensor, losses: Tensor, places: list[int], a: _Arguments, backend: str) -> InfoNCE:
    if len(places) > 1 and places != sorted(places):
        losses = torch.stack([losses[place] for place in places])
    scores = None
    if a.negatives is not None:
        scores = torch.ops.conan_fast.info_nce_negative_scores(a.queries.detach(), a.negatives.detach(), backend)
    return InfoNCE(loss, losses, scores)


def _check_features(queries: Tensor, positives: Tensor, negatives: Tensor | None, allow_no_rows: bool) -> None:
    _checks.tensor("queries", queries, "N, D")
    _checks.tensor("positives", positives, "N, D")
    if positives.shape != queries.shape:
        raise ValueError(f"positives must have shape {list(queries.shape)} like queries, got {list(positives.shape)}")
    rows, size = queries.shape
    if size == 0 or (rows == 0 and not allow_no_rows):
        raise ValueError(f"queries must have at least one row and one column, got shape {[rows, size]}")
    if negatives is None:
        _checks.floating_alike(queries=queries, positives=positives)
        return
    _checks.tensor("negatives", negatives, "N, K, D")
    if negatives.shape[0] != rows or negatives.shape[2] != size:
        raise ValueError(f"negatives must have shape [{rows}, K, {size}], got {list(negatives.shape)}")
    _checks.floating_alike(queries=queries, positives=positives, negatives=negatives)


def _check_ids(
    queries: Tensor, negatives: Tensor | None, positive_ids: Tensor | None, negative_ids: Tensor | None
) -> None:
    if positive_ids is not None:
        _checks.ids("positive_ids", positive_ids, queries.shape[:1], queries.device)
    if negative_ids is not None:
        if negatives is None or positive_ids is None:
            raise ValueError("negative_ids need negatives and positive_ids as well, got only a part of them")
        _checks.ids("negative_ids", negative_ids, negatives.shape[:2], queries.device)
