"""Small random models of the families of transformers that the adapter is tested with, in float64."""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers
from torch import Tensor, nn

VOCABULARY = 60
WINDOW = 8  # of the families that have one
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GQA = {**SIZES, "num_key_value_heads": 2}
LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}

# Family -> (config class, arguments).
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", GQA),
    "qwen2": ("Qwen2Config", {**GQA, **LAYERS, "use_sliding_window": True}),
    "qwen3": ("Qwen3Config", {**GQA, **LAYERS, "use_sliding_window": True, "head_dim": 8}),
    "mistral": ("MistralConfig", {**GQA, "sliding_window": WINDOW}),
    "gemma2": ("Gemma2Config", {**GQA, **LAYERS, "head_dim": 8}),
    "gemma2_without_softcap": ("Gemma2Config", {**GQA, **LAYERS, "head_dim": 8, "attn_logit_softcapping": None}),
    "gemma3": ("Gemma3TextConfig", {**GQA, **LAYERS, "head_dim": 8}),
    "gemma3_bidirectional": (
        "Gemma3TextConfig",
        {**GQA, **LAYERS, "head_dim": 8, "sliding_window": 2 * WINDOW - 2, "use_bidirectional_attention": True},
    ),
    "phi3": ("Phi3Config", {**GQA, "sliding_window": WINDOW}),
    "smollm3": ("SmolLM3Config", {**GQA, "no_rope_layers": [1, 0]}),
    "gpt_neox": ("GPTNeoXConfig", {**SIZES, "attention_dropout": 0.0}),
    "bert": ("BertConfig", {**SIZES, "attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}),
    "modernbert": ("ModernBertConfig", {**SIZES, "local_attention": 2 * WINDOW - 2, "layer_types": None}),
    "eurobert": ("EuroBertConfig", {**GQA}),
}
ENCODERS = ("bert", "modernbert", "eurobert", "gemma3_bidirectional")
WINDOWED = (
    "qwen2",
    "qwen3",
    "mistral",
    "gemma2_without_softcap",
    "gemma3",
    "gemma3_bidirectional",
    "phi3",
    "modernbert",
)


def config(family: str, **changes: Any) -> transformers.PreTrainedConfig:
    name, arguments = FAMILIES[family]
    made: transformers.PreTrainedConfig = getattr(transformers, name)(**{**arguments, **changes})
    return made


def model(family: str, implementation: str, **changes: Any) -> nn.Module:
    """The same weights for every implementation. In training mode, where no family here has any dropout."""
    settings = config(family, **changes)
    settings._attn_implementation = implementation
    torch.manual_seed(0)
    made = transformers.AutoModel.from_config(settings, attn_implementation=implementation).double()
    for parameter in made.parameters():  # larger than usual, so that attention is not uniform
        nn.init.normal_(parameter, std=0.3)
    for module in made.modules():
        if "RMSNorm" in type(module).__name__:
            module.forward = functools.partial(_rms_norm, module)  # type: ignore[method-assign]
    made.config.use_cache = False
    return made.train()


def _rms_norm(module: nn.Module, x: Tensor) -> Tensor:
    """In float64 throughout. transformers' own go through float32, which hides small differences or enlarges them."""
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * module.weight


def hidden(model: nn.Module, **inputs: Any) -> Tensor:
    """[B, L, hidden]."""
    found: Tensor = model(**inputs).last_hidden_state
    return found
