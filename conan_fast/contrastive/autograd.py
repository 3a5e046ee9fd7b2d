"""What InfoNCE's autograd functions share: their gradients are made together with the loss and wait for its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def weighted_sum(losses: Tensor, weights: Sequence[float]) -> Tensor:
    """The weighted sum, with the weights as plain numbers: a tensor of them would be one more copy to the device."""
    total = losses[0] * weights[0]
    for index in range(1, len(weights)):
        total = total + losses[index] * weights[index]
    return total


def keep(ctx: Any, inputs: Sequence[Tensor | None], grads: Sequence[Tensor]) -> None:
    """In forward: keeps the gradients of the function's first inputs (anything for None)."""
    ctx.dtypes = [None if x is None else x.dtype for x in inputs]
    ctx.save_for_backward(*grads)


def scaled(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    """In backward: the kept gradients times the loss's own, in the inputs' dtypes; None where none is needed."""
    wanted = zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad[: len(ctx.dtypes)], strict=True)
    in_place = _used_once()
    return [
        _product(saved, grad, in_place).to(dtype) if dtype is not None and needed else None
        for saved, dtype, needed in wanted
    ]


def _product(saved: Tensor, grad: Tensor, in_place: bool) -> Tensor:
    if not in_place or saved.dim() == 0:  # a temperature may lie on the CPU and the loss on a GPU
        return saved * grad
    # detach: autograd copies a gradient that somebody else, here ctx, holds as well.
    return saved.mul_(grad).detach()


def _used_once() -> bool:
    """Whether the graph is freed after this backward pass, so that what it kept may be overwritten.

    That saves a copy of all gradients. torch has no public way to ask; where there is none at all, the answer is no.
    """
    if torch.compiler.is_compiling():
        return False
    keeps = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return keeps is not None and not keeps()
