"""The function that transformers calls in each layer: every keyword is used, known to change nothing, or refused."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from conan_fast.attention.operator import soft_mask_attention, soft_mask_attention_varlen

from . import layout
from .alpha import layer_alpha
from .layout import Layout
from .mask import NAME, found_in_mask, window_error

# Keywords of a model's call that reach its layers and change nothing in the attention itself.
HARMLESS = frozenset(
    {
        "cache_position", "logits_to_keep", "max_length_k", "num_items_in_batch", "output_hidden_states",
        "output_router_logits", "past_key_values", "position_embeddings", "return_dict", "seq_idx", "use_cache",
    }
)  # fmt: skip
REFUSED = {
    "softcap": "soft capping of the scores",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "position_bias": "a bias of the scores by position",
    "head_mask": "a mask of heads",
    "output_attentions": "output of the attention weights, which are never stored",
}
DROPOUT_FIELDS = ("attention_dropout", "attention_probs_dropout_prob", "attn_pdrop", "attn_dropout")


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    alpha: float | Tensor | None = None,
    saturation: str = "key",
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    deterministic: bool = False,
    position_ids: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Soft-masked attention of one layer.

    Args:
        query: [B, Hq, L, D]; key: [B, Hkv, L, D]; value: [B, Hkv, L, at most D].
        attention_mask: what `mask.create_mask` made, or [B, L] with 0 for padding, or None.
        alpha: of the soft mask, 0 (causal) to 1 (bidirectional). None: what `soft_mask_alpha` set for the model; else 0
            where the layer is causal and 1 where `is_causal` (this call's, the layer's, or the config's) is False.
        sliding_window: the number of tokens that a token sees to one side, itself included.
        position_ids: [B or 1, L]; without a mask, a position that is not its predecessor plus 1 begins a sequence.
        cu_seq_lens_q: int32 [S + 1], the ends of the sequences of a packed batch (then B = 1); max_length_q: at least
            the longest of them.

    Returns:
        The output [B, L, Hq, D of value], 0 for padding; and None (no attention weights exist).

    Raises:
        ValueError: for what the soft mask does not support; TypeError: for an unknown keyword. Both name it.
    """
    _check_keywords(module, dropout, others)
    _check_operands(module, query, key, attention_mask)
    q_BLHD, k_BLHD, v_BLHD = (x.transpose(1, 2) for x in (query, key, value))
    batch_size, length = q_BLHD.shape[:2]
    mask = found_in_mask(attention_mask)
    if cu_seq_lens_q is not None:
        found = _given_layout(cu_seq_lens_q, cu_seq_lens_k, max_length_q, batch_size)
        if mask.padding and mask.segments is not None and layout.of_segments(mask.segments).tokens is not None:
            raise ValueError("attention_mask: a batch packed by cu_seq_lens_q has no padding, got a mask with padding")
    elif mask.segments is not None:
        found = layout.of_segments(mask.segments, position_ids if mask.padding else None)
    elif position_ids is not None:
        found = layout.of_positions(position_ids, batch_size)
    else:
        found = Layout(length)
    for name, size in (("sliding_window", sliding_window), ("sliding window of the mask", mask.window)):
        if size is not None and found.max_seqlen > size:
            raise window_error(name, size, found.max_seqlen)
    alpha = layer_alpha(module, is_causal) if alpha is None else alpha
    options: dict[str, Any] = {"saturation": saturation, "scale": scaling, "deterministic": deterministic}

    narrower = q_BLHD.shape[-1] - v_BLHD.shape[-1]  # multi-head latent attention
    v_BLHD = nn.functional.pad(v_BLHD, (0, narrower)) if narrower else v_BLHD
    if found.cu_seqlens is None:
        out = soft_mask_attention(q_BLHD, k_BLHD, v_BLHD, alpha, **options)
    else:
        q, k, v = found.pack(q_BLHD), found.pack(k_BLHD), found.pack(v_BLHD)
        out = found.unpack(
            soft_mask_attention_varlen(q, k, v, found.cu_seqlens, found.max_seqlen, alpha, **options), q_BLHD.shape
        )
    return (out[..., :-narrower] if narrower else out), None


def _refuse(name: str, what: str) -> NoReturn:
    raise ValueError(f"{name}: {NAME} does not support {what}; load the model with attn_implementation='sdpa'")


def _check_keywords(module: nn.Module, dropout: float, others: dict[str, Any]) -> None:
    if dropout:
        config = getattr(module, "config", None)
        field = next((x for x in DROPOUT_FIELDS if getattr(config, x, None)), DROPOUT_FIELDS[0])
        raise ValueError(
            f"dropout: {NAME} does not support dropout of attention weights, got {dropout}; load the model with "
            f"{field}=0 (for SentenceTransformer: config_kwargs={{'{field}': 0}})"
        )
    for name, value in others.items():
        if name in HARMLESS or value is None or value is False:
            continue
        if name in REFUSED:
            _refuse(name, REFUSED[name])
        raise TypeError(
            f"{NAME} got an unknown keyword, {name}={type(value).__name__}; it takes alpha, saturation, position_ids, "
            "cu_seq_lens_q, max_length_q, is_causal and sliding_window"
        )


def _check_operands(module: nn.Module, query: Tensor, key: Tensor, attention_mask: Tensor | None) -> None:
    if key.shape[2] != query.shape[2]:
        raise ValueError(
            f"key: {key.shape[2]} positions for {query.shape[2]} queries; {NAME} does not generate from a cache, and "
            "has no cross-attention; load the model with attn_implementation='sdpa' for that"
        )
    config = getattr(module, "config", None)
    encoder_decoder = getattr(config, "is_encoder_decoder", False) and getattr(module, "is_decoder", False)
    if encoder_decoder or getattr(config, "add_cross_attention", False) or "Cross" in type(module).__name__:
        _refuse(type(module).__name__, "decoders with cross-attention")
    if attention_mask is not None and attention_mask.dim() != 2:
        raise ValueError(
            f"attention_mask must have shape [batch, length], 0 for padding, got {list(attention_mask.shape)}; {NAME} "
            "does not support a mask of its own per query"
        )
    if attention_mask is not None and attention_mask.shape != (query.shape[0], query.shape[2]):
        raise ValueError(
            f"attention_mask must have shape {[query.shape[0], query.shape[2]]}, got {list(attention_mask.shape)}"
        )


def _given_layout(
    cu_seq_lens_q: Tensor, cu_seq_lens_k: Tensor | None, max_length_q: int | None, batch_size: int
) -> Layout:
    if batch_size != 1:
        raise ValueError(f"cu_seq_lens_q: a packed batch has one row, got {batch_size}")
    if max_length_q is None:
        raise ValueError("max_length_q: goes with cu_seq_lens_q, got None")
    if cu_seq_lens_k is not None and cu_seq_lens_k.shape != cu_seq_lens_q.shape:
        raise ValueError(
            f"cu_seq_lens_k must be cu_seq_lens_q, {list(cu_seq_lens_q.shape)}, got {list(cu_seq_lens_k.shape)}"
        )
    return Layout(int(max_length_q), cu_seq_lens_q.to(torch.int32))
