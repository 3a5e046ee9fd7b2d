"""The torch operators of soft-masked attention, conan_fast::attention_forward and attention_backward.

They have a schema, a shape function and a FLOP formula, so that torch.compile keeps them as they are and torch's FLOP
counter counts them; a backend computes them. They are not differentiable: `autograd.py` is what autograd sees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .. import _autocast, _checks
from . import flops, torch_backend
from .kernel_backend import KernelAttention
from .settings import Gradients, Saved, Settings

Result = TypeVar("Result")


class Backend(Protocol):
    """Computes the operators below. `needed`: which of dq, dk and dv."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, settings: Settings) -> tuple[Tensor, Tensor]: ...
    def backward(self, grad_out: Tensor, saved: Saved, needed: Sequence[bool], settings: Settings) -> Gradients: ...


KERNELS = {name: KernelAttention(name) for name in ("cuda", "emulated")}
BACKENDS: dict[str, Backend] = {"torch": torch_backend, **KERNELS}

# Where alpha_tensor or scale_tensor (on the CPU) is given, it is used in place of the number: torch.compile makes a
# graph for each value of a number.
_SETTINGS = (
    "Tensor? cu_seqlens, Tensor? alpha_tensor, Tensor? scale_tensor, SymInt max_seqlen, float alpha, float scale, "
    "str saturation, bool deterministic, str backend"
)
torch.library.define(
    "conan_fast::attention_forward", f"(Tensor q, Tensor k, Tensor v, {_SETTINGS}) -> (Tensor, Tensor)"
)
# `needed`: which of dq, dk and dv to compute; only these are returned.
torch.library.define(
    "conan_fast::attention_backward",
    "(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor logsumexp, bool[] needed, "
    f"{_SETTINGS}) -> Tensor[]",
)


def forward(q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    """The operator attention_forward: (out, logsumexp)."""
    function = _forward if _is_plain(q, k, v) else torch.ops.conan_fast.attention_forward
    result: tuple[Tensor, Tensor] = function(q, k, v, *settings)
    return result


def backward(grad_out: Tensor, *arguments: Any) -> list[Tensor]:
    """The operator attention_backward: those of dq, dk and dv that are needed."""
    function = _backward if _is_plain(grad_out, *arguments[:3]) else torch.ops.conan_fast.attention_backward
    grads: list[Tensor] = function(grad_out, *arguments)
    return grads


def _is_plain(*tensors: Tensor) -> bool:
    """Whether nobody would see the operator in torch's dispatcher, which is then skipped.

    On a CPU it takes a quarter of the time of a short sequence: 21 of 83 us forward, 29 of 119 us backward (8 tokens).
    """
    return (
        not torch.compiler.is_compiling()
        and all(type(x) in (Tensor, torch.nn.Parameter) for x in tensors)
        and torch._C._len_torch_dispatch_stack() == 0  # modes, such as that of the FLOP counter
        and not torch.autograd._profiler_enabled()
        and not torch.jit.is_tracing()
    )


def _without_autograd(device: torch.device, function: Callable[..., Result], *arguments: Any) -> Result:
    """function(*arguments) below autograd and autocast, as a kernel of torch's own runs."""
    with torch._C._AutoDispatchBelowAutograd(), _autocast.suspended(device):
        return function(*arguments)


def _settings(
    cu_seqlens: Tensor | None, alpha_tensor: Tensor | None, scale_tensor: Tensor | None, *rest: Any
) -> Settings:
    max_seqlen, alpha, scale, saturation, deterministic, _backend = rest
    alpha = alpha if alpha_tensor is None else alpha_tensor
    scale = scale if scale_tensor is None else scale_tensor.item()
    return Settings(cu_seqlens, max_seqlen, alpha, scale, saturation, deterministic)


def _forward(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _without_autograd(q.device, BACKENDS[rest[-1]].forward, q, k, v, _settings(*rest))


def _backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    needed: Sequence[bool],
    *rest: Any,
) -> list[Tensor]:
    saved, settings = Saved(q, k, v, out, logsumexp), _settings(*rest)
    grads = _without_autograd(q.device, BACKENDS[rest[-1]].backward, grad_out, saved, needed, settings)
    return [grad for grad in grads if grad is not None]


torch.library.impl("conan_fast::attention_forward", "CompositeExplicitAutograd", _forward)
torch.library.impl("conan_fast::attention_backward", "CompositeExplicitAutograd", _backward)


@torch.library.register_fake("conan_fast::attention_forward")
def _forward_shapes(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    lines = (*q.shape[:-3], q.shape[-2], q.shape[-3])
    return q.new_empty(q.shape), q.new_empty(lines, dtype=_checks.accumulation_dtype(q.dtype))


@torch.library.register_fake("conan_fast::attention_backward")
def _backward_shapes(
    _grad: Tensor, q: Tensor, k: Tensor, v: Tensor, _out: Tensor, _logsumexp: Tensor, needed: Sequence[bool], *_: Any
) -> list[Tensor]:
    return [x.new_empty(x.shape) for x, wanted in zip((q, k, v), needed, strict=True) if wanted]


register_flop_formula(torch.ops.conan_fast.attention_forward, get_raw=True)(flops.forward)
register_flop_formula(torch.ops.conan_fast.attention_backward, get_raw=True)(flops.backward)
