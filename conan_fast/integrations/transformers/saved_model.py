"""A model that was trained to be bidirectional says so in its config.json, and does not load where that is ignored."""

from __future__ import annotations

import ast
import copy
import inspect
import textwrap
from typing import Any, NoReturn

from torch import nn
from transformers import PreTrainedModel

from .alpha import attention_layers

# What config.json says. transformers 5 runs a decoder with `is_causal: false` bidirectionally; 4.x ignores the field
# and runs it causally without a word. `pruned_heads` is a field that 5 does not have; 4.x expects numbers of layers as
# its keys while it loads a config, and its error shows the key that is none.
BIDIRECTIONAL: dict[str, Any] = {
    "is_causal": False,
    "pruned_heads": {"this model is bidirectional (is_causal=false) and needs transformers 5 or newer": []},
}


def mark_bidirectional(model: nn.Module) -> None:
    """Make `save_pretrained` write that the model is bidirectional; call it before the model is saved.

    `AutoModel` and `SentenceTransformer` of transformers 5 then load it and run it bidirectionally with any attention;
    transformers 4 raises an error. Encoders, which are bidirectional anyway, stay as they are.

    Args:
        model: transformers model with attn_implementation="conan_soft_mask", or anything that contains one.

    Raises:
        ValueError: no layer of the model uses the soft mask, or transformers would not run the model bidirectionally.
    """
    layers = attention_layers(model)
    causal = {id(x) for x in layers if x.is_causal}
    for parent in model.modules():
        for name, child in parent.named_children():
            if id(child) in causal and not _passes_keywords(parent, name):
                _refuse(f"{type(parent).__name__} does not pass is_causal on to its attention")
    for layer in layers:
        if id(layer) in causal:
            if "chunked_attention" in (getattr(layer.config, "layer_types", None) or ()):
                _refuse("it has layers whose attention is chunked")
            layer.config.is_causal = False
    for module in model.modules():  # the config that is saved may be one that contains the layers'
        if isinstance(module, PreTrainedModel) and any(id(x) in causal for x in module.modules()):
            for field, value in BIDIRECTIONAL.items():
                setattr(module.config, field, copy.copy(value))


def _refuse(reason: str) -> NoReturn:
    raise ValueError(f"model: transformers would run it causally once it is saved and loaded, because {reason}")


def _passes_keywords(parent: nn.Module, name: str) -> bool:
    """Whether `parent.forward` calls its child `name` with the keywords that it gets: is_causal is one of them."""
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(type(parent).forward)))
    except OSError:  # a class without a file: nothing shows that it does
        return False
    calls = [
        x for x in ast.walk(ast.parse(source)) if isinstance(x, ast.Call) and ast.unparse(x.func) == f"self.{name}"
    ]
    return bool(calls) and all(any(keyword.arg is None for keyword in call.keywords) for call in calls)
