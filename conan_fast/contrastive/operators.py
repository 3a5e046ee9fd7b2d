"""InfoNCE as torch operators: what torch.compile keeps as it is, and torch's FLOP counter counts.

Each is a method of a `Backend`. A call of `info_nce` in one process is one `info_nce_sweep`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .. import _autocast, _checks
from .backend import BACKENDS
from .batch import Batch, Wanted

_BATCH = (
    "Tensor queries, Tensor positives, Tensor? shared, Tensor? private, Tensor temperature, Tensor? query_ids, "
    "Tensor? positive_ids, Tensor? shared_ids, Tensor? private_ids, SymInt[] dims, float[] dim_weights, "
    "SymInt? first_positive, SymInt total"
)
for _signature in (
    f"info_nce_sweep({_BATCH}, bool[] wanted, str backend) -> (Tensor, Tensor[])",
    f"info_nce_statistics({_BATCH}, str backend) -> (Tensor, Tensor)",
    f"info_nce_gradients({_BATCH}, Tensor logsumexp, bool[] wanted, str backend) -> Tensor[]",
    "info_nce_negative_scores(Tensor queries, Tensor negatives, str backend) -> Tensor",
    "info_nce_scaled(Tensor[] kept, Tensor grad, Tensor[] features) -> Tensor[]",
):
    torch.library.define(f"conan_fast::{_signature.partition('(')[0]}", _signature[_signature.index("(") :])


@torch.library.impl("conan_fast::info_nce_sweep", "CompositeExplicitAutograd")
def _sweep(queries: Tensor, *arguments: Any) -> tuple[Tensor, list[Tensor]]:
    with torch.no_grad(), _autocast.suspended(queries.device):
        *fields, wanted, backend = arguments
        losses, grads = BACKENDS[backend].sweep(Batch(queries, *fields), Wanted(*wanted))
        return losses, present(grads)


@torch.library.register_fake("conan_fast::info_nce_sweep")
def _sweep_shapes(queries: Tensor, *arguments: Any) -> tuple[Tensor, list[Tensor]]:
    *fields, wanted, _ = arguments
    batch = Batch(queries, *fields)
    losses = queries.new_empty(len(batch.dims), dtype=_checks.accumulation_dtype(queries.dtype))
    kept = _checks.kept_gradient_dtype(queries.dtype)
    grads = [
        torch.empty_like(x, dtype=x.dtype if x is batch.temperature else kept, memory_format=torch.contiguous_format)
        for x, is_wanted in zip(batch.features, wanted, strict=True)
        if is_wanted and x is not None
    ]
    return losses, grads


# The next two are those of a ring of processes, which torch.compile does not trace: they have no shape functions.
@torch.library.impl("conan_fast::info_nce_statistics", "CompositeExplicitAutograd")
def _statistics(*arguments: Any) -> tuple[Tensor, Tensor]:
    *fields, backend = arguments
    return BACKENDS[backend].statistics(Batch(*fields))


@torch.library.impl("conan_fast::info_nce_gradients", "CompositeExplicitAutograd")
def _gradients(*arguments: Any) -> list[Tensor]:
    *fields, logsumexp, wanted, backend = arguments
    return present(BACKENDS[backend].gradients(Batch(*fields), logsumexp, Wanted(*wanted)))


@torch.library.impl("conan_fast::info_nce_negative_scores", "CompositeExplicitAutograd")
def _negative_scores(queries: Tensor, negatives: Tensor, backend: str) -> Tensor:
    with torch.no_grad(), _autocast.suspended(queries.device):
        return BACKENDS[backend].negative_scores(queries, negatives)


@torch.library.register_fake("conan_fast::info_nce_negative_scores")
def _negative_scores_shape(queries: Tensor, negatives: Tensor, backend: str) -> Tensor:
    return queries.new_empty(negatives.shape[:2], dtype=_checks.accumulation_dtype(queries.dtype))


# The backward pass under torch.compile: kept gradients times the loss's own. It takes the features along, of which it
# needs the dtypes only: so torch sees that a second derivative depends on them, and raises.
@torch.library.impl("conan_fast::info_nce_scaled", "CompositeExplicitAutograd")
def _scaled(kept: Sequence[Tensor], grad: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
    return [(x * grad).to(like.dtype) for x, like in zip(kept, features, strict=True)]


@torch.library.register_fake("conan_fast::info_nce_scaled")
def _scaled_shapes(kept: Sequence[Tensor], grad: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
    return [torch.empty_like(x, dtype=like.dtype) for x, like in zip(kept, features, strict=True)]


def present(grads: Iterable[Tensor | None]) -> list[Tensor]:
    """Those that are wanted."""
    return [grad for grad in grads if grad is not None]


def _score_flops(batch: Batch) -> tuple[int, int, int]:
    """FLOP of the scores of positives, shared and private negatives. Here a Batch holds shapes instead of tensors."""
    rows, width = batch.queries[0], batch.dims[-1]
    columns = [0 if shape is None else shape[-2] for shape in (batch.positives, batch.shared, batch.private)]
    positives, shared, private = (2 * int(rows) * width * int(count) for count in columns)
    return positives, shared, private


def _gradient_flops(batch: Batch, wanted: Sequence[bool]) -> int:
    """Each wanted gradient of features costs as much as the scores it comes from."""
    positives, shared, private = _score_flops(batch)
    each = positives + shared + private, positives, shared, private, 0
    return sum(flops for flops, is_wanted in zip(each, wanted, strict=True) if is_wanted)


@register_flop_formula(torch.ops.conan_fast.info_nce_sweep)
def _sweep_flops(*arguments: Any, **_: Any) -> int:
    *fields, wanted, _ = arguments
    batch = Batch(*fields)
    return sum(_score_flops(batch)) + _gradient_flops(batch, wanted)


@register_flop_formula(torch.ops.conan_fast.info_nce_statistics)
def _statistics_flops(*arguments: Any, **_: Any) -> int:
    return sum(_score_flops(Batch(*arguments[:-1])))


@register_flop_formula(torch.ops.conan_fast.info_nce_gradients)
def _gradients_flops(*arguments: Any, **_: Any) -> int:
    *fields, _, wanted, _ = arguments
    batch = Batch(*fields)
    return sum(_score_flops(batch)) + _gradient_flops(batch, wanted)  # the scores are computed anew


@register_flop_formula(torch.ops.conan_fast.info_nce_negative_scores)
def _negative_scores_flops(queries: Sequence[int], negatives: Sequence[int], *_: Any, **__: Any) -> int:
    rows, count, size = negatives
    return 2 * rows * count * size
