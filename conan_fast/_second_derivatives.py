"""Operators that have first derivatives only: a second one raises, wherever it is tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def refuse(operator: str, grads: Sequence[Tensor | None], sources: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """`grads`, such that differentiating them by any of `sources` raises a RuntimeError that names the operator.

    For the backward pass of an autograd function. sources: what the gradients depend on, that is, the function's inputs
    and the gradient of its output. torch's `once_differentiable` looks at the gradient of the output alone, which is
    a constant under `loss.backward(create_graph=True)`: then the operator's part of the second derivative is missing.
    """
    if not torch.is_grad_enabled():  # no create_graph=True
        return grads
    places = [place for place, grad in enumerate(grads) if grad is not None]
    found: list[Tensor | None] = [None] * len(grads)
    aliases = _Refused.apply(operator, len(places), *(grads[place] for place in places), *sources)
    for place, alias in zip(places, aliases, strict=True):
        found[place] = alias
    return found


class _Refused(torch.autograd.Function):
    """The first `count` of the tensors as they are."""

    generate_vmap_rule = True  # torch.func.jacrev

    @staticmethod
    def forward(operator: str, count: int, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(x if x is None else x.view_as(x) for x in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.operator = inputs[0]

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            f"{ctx.operator} has no second derivatives, and one was asked for (a gradient penalty or another "
            "derivative of gradients made with create_graph=True). Take this operator out of the loss whose gradient "
            f"is differentiated, or use conan_fast.reference.{ctx.operator}, which is plain torch."
        )
