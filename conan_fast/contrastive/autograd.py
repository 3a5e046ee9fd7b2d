"""InfoNCE as torch operators, and its autograd function.

The gradients are made together with the loss; the backward pass multiplies them by the loss's own gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _checks
from .backend import BACKENDS
from .batch import Batch, Gradients

torch.library.define(
    "conan_fast::info_nce_sweep",
    "(Tensor queries, Tensor positives, Tensor? shared, Tensor? private, Tensor temperature, Tensor? query_ids, "
    "Tensor? positive_ids, Tensor? shared_ids, Tensor? private_ids, int[] dims, float[] dim_weights, "
    "SymInt first_positive, SymInt total, bool with_gradients, str backend) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "conan_fast::info_nce_negative_scores", "(Tensor queries, Tensor negatives, str backend) -> Tensor"
)


@torch.library.impl("conan_fast::info_nce_sweep", "CompositeExplicitAutograd")
def _sweep(queries: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    with torch.no_grad(), torch.autocast(queries.device.type, enabled=False):
        *batch, with_gradients, backend = arguments
        losses, gradients = BACKENDS[backend].sweep(Batch(queries, *batch), with_gradients)
        return losses, *gradients


@torch.library.register_fake("conan_fast::info_nce_sweep")
def _sweep_shapes(queries: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *fields, with_gradients, _ = arguments
    batch = Batch(queries, *fields)
    losses = queries.new_empty(len(batch.dims), dtype=_checks.accumulation_dtype(queries.dtype))
    kept = _checks.kept_gradient_dtype(queries.dtype)
    grads = (
        queries.new_empty(x.shape if with_gradients and x is not None else 0, dtype=kept) for x in batch.features[:-1]
    )
    return losses, *grads, batch.temperature.new_empty(())


@torch.library.impl("conan_fast::info_nce_negative_scores", "CompositeExplicitAutograd")
def _negative_scores(queries: Tensor, negatives: Tensor, backend: str) -> Tensor:
    with torch.no_grad(), torch.autocast(queries.device.type, enabled=False):
        return BACKENDS[backend].negative_scores(queries, negatives)


@torch.library.register_fake("conan_fast::info_nce_negative_scores")
def _negative_scores_shape(queries: Tensor, negatives: Tensor, backend: str) -> Tensor:
    return queries.new_empty(negatives.shape[:2], dtype=_checks.accumulation_dtype(queries.dtype))


class InfoNCELoss(torch.autograd.Function):
    """(loss, loss per dim [dims]) by `apply(*batch, with_gradients, backend)`."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        batch = Batch(*arguments[:-2])
        losses, *grads = torch.ops.conan_fast.info_nce_sweep(*arguments)
        return keep_gradients(ctx, batch, losses, grads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        return *kept_gradients(ctx, grads[0]), *[None] * (len(Batch._fields) - len(Gradients._fields) + 2)


def keep_gradients(ctx: Any, batch: Batch, losses: Tensor, grads: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """In forward: keeps the gradients of the batch's features; returns (weighted sum of losses, losses)."""
    ctx.dtypes = [None if x is None else x.dtype for x in batch.features]
    ctx.save_for_backward(*grads)
    ctx.mark_non_differentiable(losses)
    # The weights are Python floats: a tensor of them would be one more copy to the device.
    loss = losses[0] * batch.dim_weights[0]
    for index in range(1, len(batch.dim_weights)):
        loss = loss + losses[index] * batch.dim_weights[index]
    return loss, losses


def kept_gradients(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    """In backward: the kept gradients times the loss's own, in the inputs' dtypes; None where none is needed."""
    wanted = zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad[: len(ctx.dtypes)], strict=True)
    in_place = _graph_is_freed()
    return [
        _times(kept, grad, in_place).to(dtype) if dtype is not None and needed else None
        for kept, dtype, needed in wanted
    ]


def _times(kept: Tensor, grad: Tensor, in_place: bool) -> Tensor:
    if not in_place or kept.dim() == 0:  # a temperature may be on the CPU and the loss on a GPU
        return kept * grad
    # detach: autograd copies a gradient that ctx holds as well.
    return kept.mul_(grad).detach()


def _graph_is_freed() -> bool:
    """Whether the graph is freed after this backward pass, so that what it kept may be overwritten.

    That saves a copy of all gradients. torch has no public way to ask; where there is none at all, the answer is no.
    """
    if torch.compiler.is_compiling():
        return False
    keeps = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return keeps is not None and not keeps()
