"""A model that was trained to be bidirectional says so in its config.json, and does not load where that is ignored."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from .alpha import attention_layers
from .mask import NAME

# transformers 5 runs a decoder whose config says `is_causal: false` bidirectionally; 4.x ignores the field and runs it
# causally without a word. Of the fields that 5 ignores, 4.x reads this one while it loads a config: it wants numbers of
# layers as keys, and its error shows the key that is none.
GUARD_FIELD = "pruned_heads"
GUARD: dict[str, list[int]] = {"this model is bidirectional (is_causal=false) and needs transformers 5 or newer": []}


def mark_bidirectional(model: nn.Module) -> None:
    """Make `save_pretrained` write that the model is bidirectional; call it before the model is saved.

    `AutoModel` and `SentenceTransformer` of transformers 5 then load it and run it bidirectionally with any attention;
    transformers 4 raises an error. Encoders, which are bidirectional anyway, stay as they are.

    Args:
        model: transformers model with attn_implementation="conan_soft_mask", or anything that contains one.

    Raises:
        ValueError: no layer of the model uses the soft mask.
    """
    layers = attention_layers(model)
    if not layers:
        raise ValueError(f"model: no layer uses {NAME}, so nothing makes it bidirectional")
    causal = {id(x) for x in layers if x.is_causal}
    for layer in layers:
        if id(layer) in causal:
            layer.config.is_causal = False
    for module in model.modules():  # the config that is saved may be one that contains the layers'
        if isinstance(module, PreTrainedModel) and any(id(x) in causal for x in module.modules()):
            mark_config(module.config)


def mark_config(config: PreTrainedConfig) -> None:
    """The two fields of one config."""
    config.is_causal = False
    setattr(config, GUARD_FIELD, dict(GUARD))
