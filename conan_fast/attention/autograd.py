"""What autograd and torch.func see of soft-masked attention: first derivatives, vmap, and an error for anything else.

`settings` are the operators' arguments after q, k, v and the like: cu_seqlens, alpha and scale as tensors or None, and
then what is no tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from . import ops


def attention(q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> Tensor:
    """The output of the operator attention_forward, differentiable by q, k and v."""
    if torch.compiler.is_compiling():
        function: type[torch.autograd.Function] = _TracedAttention
    elif torch._C._are_functorch_transforms_active():
        return _TransformedAttention.apply(q, k, v, *settings)[0]
    else:
        function = _Attention
    out: Tensor = function.apply(q, k, v, *settings)
    return out


class _TracedAttention(torch.autograd.Function):
    """Keeps q, k, v, out and the logsumexp of the rows; the backward pass recomputes the weights.

    torch.compile can trace this class, but none with jvp or vmap.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> Tensor:
        out, logsumexp = ops.forward(q, k, v, *settings)
        ctx.save_for_backward(q, k, v, out, logsumexp, *settings[:3])
        ctx.settings = settings[3:]
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        *saved, cu_seqlens, alpha, scale = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        # Under create_graph=True the gradients get a node whose backward raises.
        compute = Gradients.apply if torch.is_grad_enabled() else ops.backward
        made = compute(grads[0], *saved, needed, cu_seqlens, alpha, scale, *ctx.settings)
        return _by_input(made, needed, ctx.settings)


class _Attention(_TracedAttention):
    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        _raise_forward_mode()


class _TransformedAttention(torch.autograd.Function):
    """(out, logsumexp) in the form that torch.func needs, which takes more time per call."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
        return ops.forward(q, k, v, *settings)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs[:3], *output, *inputs[3:6])
        ctx.settings = inputs[6:]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        *saved, cu_seqlens, alpha, scale = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        made = Gradients.apply(grads[0], *saved, needed, cu_seqlens, alpha, scale, *ctx.settings)
        return _by_input(made, needed, ctx.settings)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        _raise_forward_mode()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        outputs = _TransformedAttention.apply(*_merge(info.batch_size, in_dims, inputs, 3))
        return tuple(_split(x, info.batch_size) for x in outputs), (0, 0)


class Gradients(torch.autograd.Function):
    """The operator attention_backward, with an error in place of second derivatives."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return tuple(ops.backward(*inputs))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> NoReturn:
        _raise_second()

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        _raise_second()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        grads = Gradients.apply(*_merge(info.batch_size, in_dims, inputs, 6))
        return tuple(_split(grad, info.batch_size) for grad in grads), (0,) * len(grads)


def _by_input(made: Sequence[Tensor], needed: Sequence[bool], settings: Sequence[Any]) -> tuple[Tensor | None, ...]:
    """The gradient of each input of attention, None for those that have none or need none."""
    grads = iter(made)
    return *(next(grads) if wanted else None for wanted in needed), None, None, None, *(None for _ in settings)


def _merge(size: int, in_dims: Sequence[Any], inputs: Sequence[Any], count: int) -> list[Any]:
    """The inputs of a vmap, with its dimension as further heads, which are independent, in the first `count` tensors.

    These are [..., tokens, heads, head_dim] or [..., heads, tokens].
    """
    if any(isinstance(dim, int) for dim in in_dims[count:]):
        _raise("vmap over alpha or cu_seqlens; map over q, k and v, or call it once per alpha or cu_seqlens")
    merged = []
    for x, dim in zip(inputs[:count], in_dims, strict=False):
        mapped = x.unsqueeze(-3).expand(*x.shape[:-2], size, *x.shape[-2:]) if dim is None else x.movedim(dim, -3)
        merged.append(mapped.flatten(-3, -2))
    return [*merged, *inputs[count:]]


def _split(x: Tensor, size: int) -> Tensor:
    """x with the dimension of the vmap in front again."""
    return x.unflatten(-2, (size, -1)).movedim(-3, 0)


def _raise_forward_mode() -> NoReturn:
    _raise("forward-mode derivatives (jvp, jacfwd, hessian); use reverse mode (grad, vjp, jacrev)")


def _raise_second() -> NoReturn:
    _raise("second derivatives, such as the gradient of a gradient penalty; use reference.soft_mask_attention for them")


def _raise(what: str) -> NoReturn:
    raise RuntimeError(f"conan_fast: soft_mask_attention and soft_mask_attention_varlen do not support {what}")
