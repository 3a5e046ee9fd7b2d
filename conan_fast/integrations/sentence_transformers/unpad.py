"""Texts without padding for a SentenceTransformer with our attention."""

from __future__ import annotations

from typing import Any
from unittest import mock

import transformers.modeling_flash_attention_utils as flash
import transformers.utils.generic as generic

from ..transformers import NAME


def unpad_inputs(model: Any) -> None:
    """Makes a SentenceTransformer flatten texts into one row without padding (its `unpad_inputs`).

    sentence-transformers does so by itself only for attention implementations with "flash" in their name.
    model: a SentenceTransformer loaded with model_kwargs={"attn_implementation": "conan_soft_mask"}.
    Raises ValueError for another attention implementation, and for a model that sentence-transformers cannot flatten.
    """
    module = model[0]
    if not hasattr(module, "can_flatten_inputs"):
        got = f"{type(module).__module__}.{type(module).__name__}"
        raise ValueError(f"unpad_inputs needs the Transformer module of sentence-transformers 5.4 or newer, got {got}")
    if module.config._attn_implementation != NAME:
        got = module.config._attn_implementation
        raise ValueError(f"unpad_inputs needs a model with attn_implementation={NAME!r}, got {got!r}")
    functions = (None, _unused, None, None, None), (None, None)
    with (
        mock.patch.object(generic, "is_flash_attention_requested", lambda *_, **__: True),
        mock.patch.object(flash, "lazy_import_flash_attention", lambda *_, **__: functions),
    ):
        module.unpad_inputs = None  # decided by sentence-transformers, which looks at the model
    if not module.can_flatten_inputs:
        raise ValueError(
            "unpad_inputs needs a text model that returns token embeddings, got one that cannot be flattened"
        )


def _unused() -> None:
    """Stands for a flash-attention function that takes sequences without padding."""
