"""alpha of a model: one 0-dim tensor, which all its attention layers read."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from conan_fast import _checks

from .mask import NAME

_CHILD = "soft_mask"


class SoftMask(nn.Module):
    """Holds alpha. One instance is a child of every attention layer, so it moves and is copied with the model.

    alpha is a buffer that is not saved: DDP sends rank 0's to all processes, and torch.compile sees a new value without
    a new graph. It stays float32 when the model is cast.
    """

    alpha: Tensor

    def __init__(self, alpha: float, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("alpha", torch.tensor(alpha, dtype=torch.float32, device=device), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SoftMask:
        self.alpha = self.alpha.to(fn(self.alpha).device)
        return self

    def extra_repr(self) -> str:
        return "alpha on meta" if self.alpha.is_meta else f"alpha={self.alpha.item():g}"


def soft_mask_alpha(model: nn.Module, alpha: float | Tensor | None = None) -> Tensor:
    """The model's alpha, 0 (causal) to 1 (bidirectional); sets it first if one is given.

    It holds for every call that has no `alpha=` keyword of its own, in training, evaluation and `encode` alike. The
    first call of this function makes the tensor; until then a model is causal or bidirectional as its config says.

    Args:
        model: transformers model with attn_implementation="conan_soft_mask", or anything that contains one
            (SentenceTransformer, DDP, torch.compile, PEFT).
        alpha: float in [0, 1] or 0-dim tensor; None: it stays.

    Returns:
        The 0-dim float32 tensor itself: writing to it in place sets alpha as well.

    Raises:
        ValueError: alpha is outside [0, 1], or no layer of the model uses the soft mask.
    """
    holders = {id(x): x for x in model.modules() if isinstance(x, SoftMask)}
    if len(holders) > 1:
        raise ValueError(f"model must have one alpha, got {len(holders)}: set it for each of its models")
    holder = next(iter(holders.values())) if holders else _attach(model)
    if holder.alpha.is_meta:
        raise ValueError("model: it is on the meta device; load its weights first")
    if alpha is not None:
        _checks.alpha(alpha, holder.alpha.device)
        if isinstance(alpha, Tensor) and alpha.device.type == "cpu":
            _checks.alpha_value(float(alpha))
        with torch.no_grad():
            holder.alpha.fill_(alpha) if isinstance(alpha, (int, float)) else holder.alpha.copy_(alpha)
    return holder.alpha


def _attach(model: nn.Module) -> SoftMask:
    layers = attention_layers(model)
    if not layers:
        raise ValueError(
            f"model: no layer uses {NAME}; call register() and load the model with attn_implementation={NAME!r}"
        )
    defaults = {default_alpha(x) for x in layers}
    if len(defaults) > 1:
        raise ValueError("model: some of its layers are causal and some bidirectional; pass alpha= in each call")
    device = next((x.device for x in layers[0].parameters()), torch.device("cpu"))
    holder = SoftMask(defaults.pop(), device)
    for layer in layers:
        layer.add_module(_CHILD, holder)
    return holder


def attention_layers(model: nn.Module) -> list[Any]:
    """The layers that call our attention: they have `is_causal` and a config with our implementation.

    Raises ValueError for one that transformers does not let call another attention than its own.
    """
    layers = []
    for layer in model.modules():
        if (
            hasattr(layer, "is_causal")
            and getattr(getattr(layer, "config", None), "_attn_implementation", None) == NAME
        ):
            if "ALL_ATTENTION_FUNCTIONS" not in inspect.unwrap(type(layer).forward).__code__.co_names:
                raise ValueError(f"model: {type(layer).__name__} has an attention of its own and ignores {NAME}")
            layers.append(layer)
    return layers


def layer_alpha(layer: Any, is_causal: bool | None) -> float | Tensor:
    """alpha of a call that gives none."""
    holder = layer._modules.get(_CHILD)
    if holder is not None:
        # A copy: the backward pass needs this value, and DDP writes to buffers in each forward pass.
        copy: Tensor = holder.alpha.clone()
        return copy
    return default_alpha(layer, is_causal)


def default_alpha(layer: nn.Module, is_causal: bool | None = None) -> float:
    """0 where a layer is causal; 1 where this call, the layer or its config says `is_causal = False`."""
    if is_causal is None:
        is_causal = getattr(layer, "is_causal", None)
        if is_causal is None:
            raise ValueError(f"is_causal: {type(layer).__name__} does not say whether it is causal; pass alpha=")
        is_causal = is_causal and getattr(getattr(layer, "config", None), "is_causal", True)
    return 0.0 if is_causal else 1.0
