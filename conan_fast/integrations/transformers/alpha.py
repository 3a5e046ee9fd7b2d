"""alpha of a model: one 0-dim tensor, which all its attention layers read."""

from __future__ import annotations

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

    Once set it holds for every call that has no `alpha=` keyword of its own, in training, evaluation and `encode`
    alike, and comes before `is_causal`. Until it is set, a model is causal or bidirectional as its layers and its
    config say.

    Args:
        model: transformers model with attn_implementation="conan_soft_mask", or anything that contains one
            (SentenceTransformer, DDP, torch.compile, PEFT). Towers for images or audio keep their own attention.
        alpha: float in [0, 1] or 0-dim tensor; None: it stays.

    Returns:
        A 0-dim float32 tensor. Where alpha has been set, the tensor that the layers read.

    Raises:
        ValueError: alpha is outside [0, 1], or no layer of the model uses the soft mask.
    """
    layers = attention_layers(model)
    holders = {id(x): x for layer in layers if (x := layer._modules.get(_CHILD)) is not None}
    if len(holders) > 1:
        raise ValueError(f"model must have one alpha, got {len(holders)}: set it for each of its models")
    holder: SoftMask | None = next(iter(holders.values()), None)
    if holder is None:
        defaults = {default_alpha(x) for x in layers}
        if len(defaults) > 1 and alpha is None:
            raise ValueError("model: some of its layers are causal and some bidirectional, so it has no single alpha")
        device = next((x.device for x in layers[0].parameters()), torch.device("cpu"))
        holder = SoftMask(defaults.pop(), device)
    if holder.alpha.is_meta:
        raise ValueError("model: it is on the meta device; load its weights first")
    if alpha is None:
        return holder.alpha
    _checks.alpha(alpha, holder.alpha.device)
    if isinstance(alpha, Tensor) and alpha.device.type == "cpu":
        _checks.alpha_value(float(alpha))
    with torch.no_grad():
        holder.alpha.fill_(alpha) if isinstance(alpha, (int, float)) else holder.alpha.copy_(alpha)
    for layer in layers:  # all of them: some may have been replaced since
        if layer._modules.get(_CHILD) is not holder:
            layer.add_module(_CHILD, holder)
    return holder.alpha


def attention_layers(model: nn.Module) -> list[Any]:
    """The layers for tokens that call our attention: they have `is_causal` and a config with our implementation.

    Raises ValueError where there are none.
    """
    layers = [x for x in model.modules() if hasattr(x, "is_causal") and _is_ours(getattr(x, "config", None))]
    if not layers:
        raise ValueError(
            f"model: no layer for tokens uses {NAME}; call register() and load the model with "
            f"attn_implementation={NAME!r}"
        )
    return layers


def _is_ours(config: Any) -> bool:
    return getattr(config, "_attn_implementation", None) == NAME and is_for_tokens(config)


def is_for_tokens(config: Any) -> bool:
    """Not a tower for images or audio."""
    return hasattr(config, "vocab_size")


def layer_alpha(
    layer: Any, alpha: float | Tensor | None, is_causal: bool | None, mask_is_causal: bool | None
) -> float | Tensor:
    """alpha of a call: its own, else the one that was set, else the layer's default, with which the mask must agree."""
    if is_for_tokens(getattr(layer, "config", None)):
        if alpha is not None:
            return alpha
        holder = layer._modules.get(_CHILD)
        if holder is not None:
            # A copy: the backward pass needs this value, and DDP writes to buffers in each forward pass.
            copy: Tensor = holder.alpha.clone()
            return copy
    default = default_alpha(layer, is_causal)
    if mask_is_causal is not None and mask_is_causal != (default == 0.0):
        expected, got = ("causal", "bidirectional")[:: 1 if default == 0.0 else -1]
        raise ValueError(
            f"attention mask: {type(layer).__name__} is {expected}, and the mask of this batch {got}; pass alpha, or "
            "load the model with another attn_implementation"
        )
    return default


def default_alpha(layer: nn.Module, is_causal: bool | None = None) -> float:
    """0 where a layer is causal; 1 where this call, the layer or its config says `is_causal = False`."""
    if is_causal is None:
        is_causal = getattr(layer, "is_causal", None)
        if is_causal is None:
            raise ValueError(f"is_causal: {type(layer).__name__} does not say whether it is causal; pass alpha=")
        is_causal = is_causal and getattr(getattr(layer, "config", None), "is_causal", True)
    return 0.0 if is_causal else 1.0
