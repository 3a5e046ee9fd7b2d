"""The function that transformers calls in each layer: every keyword is used, known to change nothing, or refused."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from conan_fast.attention.operator import soft_mask_attention, soft_mask_attention_varlen

from . import layout
from .alpha import layer_alpha
from .layout import Layout
from .mask import NAME, Found, found_in_mask, window_error

# Keywords of a model's call that reach its layers and change nothing in the attention itself.
HARMLESS = frozenset(
    {
        "cache_position", "logits_to_keep", "max_length_k", "num_items_in_batch", "output_hidden_states",
        "output_router_logits", "past_key_values", "position_embeddings", "return_dict", "use_cache",
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
    seq_idx: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Soft-masked attention of one layer.

    Args:
        query: [B, Hq, L, D]; key: [B, Hkv, L, D]; value: [B, Hkv, L, at most D].
        attention_mask: what `mask.create_mask` made, or [B, L] with 0 for padding, or None.
        alpha: of the soft mask, 0 (causal) to 1 (bidirectional). None: what `soft_mask_alpha` set for the model; else 0
            where the layer is causal and 1 where `is_causal` (this call's, the layer's, or the config's) is False.
            Layers that see no tokens but images or audio stay bidirectional.
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
    _check_operands(module, query, key, value)
    _check_no_cross_attention(module)
    _check_mask_shape(attention_mask, query)
    q_BLHD, k_BLHD, v_BLHD = (x.transpose(1, 2) for x in (query, key, value))
    mask = found_in_mask(attention_mask)
    _check_received(module, mask, alpha=alpha, is_causal=is_causal, cu_seq_lens_q=cu_seq_lens_q)
    if cu_seq_lens_q is None and cu_seq_lens_k is None and max_length_q is None:
        found = _layout(module, mask, position_ids, q_BLHD.shape)
    else:
        found = _given_layout(cu_seq_lens_q, cu_seq_lens_k, max_length_q, mask, q_BLHD.shape[0])
    if seq_idx is not None and found.cu_seqlens is None:
        _check_one_sequence(seq_idx)
    _check_window(module, mask, sliding_window, found.reach)
    if cu_seq_lens_q is not None or (found.cu_seqlens is not None and not mask.padding):
        _check_packable(module)
    alpha = layer_alpha(module, alpha, is_causal, mask.causal)
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
    raise ValueError(f"{name}: {NAME} does not support {what}; load the model with another attn_implementation")


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


def _check_received(module: nn.Module, mask: Found, **given: Any) -> None:
    """The layer got what the model was called with."""
    for name in mask.keywords:
        if given[name] is None:
            raise ValueError(f"{name}: the model does not pass it to {type(module).__name__}, so it would be ignored")


def _check_one_sequence(seq_idx: Tensor) -> None:
    """Nothing else says that the batch is packed: then this has to say the same."""
    layout.raise_if(
        (seq_idx != seq_idx[..., :1]).any(),
        "seq_idx: got several sequences; the attention reads position_ids or cu_seq_lens_q, pass one of them too",
    )


def _check_operands(module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> None:
    if key.shape[2] != query.shape[2]:
        raise ValueError(
            f"key: {key.shape[2]} positions for {query.shape[2]} queries; {NAME} does not generate from a cache, and "
            "has no cross-attention; load the model with another attn_implementation for that"
        )
    if value.shape[-1] > query.shape[-1]:
        _refuse("value", f"values wider ({value.shape[-1]}) than queries ({query.shape[-1]})")


def _check_no_cross_attention(module: nn.Module) -> None:
    config = getattr(module, "config", None)
    encoder_decoder = getattr(config, "is_encoder_decoder", False)
    cross = getattr(config, "add_cross_attention", False) or "Cross" in type(module).__name__
    if torch.compiler.is_compiling():
        cross = cross or encoder_decoder or "QFormer" in type(module).__name__
    else:
        # Not all layers say what they are: the variables of their forward methods do.
        caller = sys._getframe(2).f_locals
        cross = cross or any(caller.get(name) is not None for name in ("key_value_states", "encoder_hidden_states"))
    if cross or (encoder_decoder and getattr(module, "is_decoder", False)):
        _refuse(type(module).__name__, "decoders with cross-attention")


def _check_mask_shape(attention_mask: Tensor | None, query: Tensor) -> None:
    if attention_mask is None:
        return
    if attention_mask.dim() != 2:
        raise ValueError(
            f"attention_mask must have shape [batch, length], 0 for padding, got {list(attention_mask.shape)}; {NAME} "
            "does not support a mask of its own per query"
        )
    if attention_mask.shape != (query.shape[0], query.shape[2]):
        raise ValueError(
            f"attention_mask must have shape {[query.shape[0], query.shape[2]]}, got {list(attention_mask.shape)}"
        )
    if attention_mask.is_floating_point() and not torch.compiler.is_compiling() and bool((attention_mask < 0).any()):
        raise ValueError("attention_mask: expected 1 for tokens and 0 for padding, got values below 0")


def _layout(module: nn.Module, mask: Found, position_ids: Tensor | None, shape: torch.Size) -> Layout:
    if mask.segments is not None:
        positions = position_ids if position_ids is not None and position_ids.dim() == 2 else None
        return layout.of_segments(mask.segments, positions)
    if position_ids is not None and position_ids.dim() == 2:
        return layout.of_positions(position_ids, shape[0])
    if position_ids is not None:
        layout.refuse_restarts(position_ids)
    elif mask.traced:
        raise ValueError(
            f"attention_mask: under torch.compile pass one, 1 for every token; {type(module).__name__} does not get "
            "position_ids, so nothing shows whether texts are packed"
        )
    return Layout(shape[1], shape[1])


def _given_layout(
    cu_seq_lens_q: Tensor | None, cu_seq_lens_k: Tensor | None, max_length_q: int | None, mask: Found, batch_size: int
) -> Layout:
    if cu_seq_lens_q is None:
        raise ValueError("cu_seq_lens_q: goes with cu_seq_lens_k and max_length_q, got None")
    if batch_size != 1:
        raise ValueError(f"cu_seq_lens_q: a packed batch has one row, got {batch_size}")
    if max_length_q is None:
        raise ValueError("max_length_q: goes with cu_seq_lens_q, got None")
    if cu_seq_lens_q.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"cu_seq_lens_q must be int32 or int64, got {cu_seq_lens_q.dtype}")
    if cu_seq_lens_k is not None and cu_seq_lens_k is not cu_seq_lens_q:
        message = "cu_seq_lens_k: queries and keys are the same tokens, so it must equal cu_seq_lens_q"
        if cu_seq_lens_k.shape != cu_seq_lens_q.shape:
            raise ValueError(f"{message}, got shape {list(cu_seq_lens_k.shape)}")
        torch._assert_async((cu_seq_lens_k == cu_seq_lens_q).all(), message)
    if mask.padding and mask.segments is not None and layout.of_segments(mask.segments).tokens is not None:
        raise ValueError("attention_mask: a batch packed by cu_seq_lens_q has no padding, got a mask with padding")
    longest = int(max_length_q)
    return Layout(longest, longest, cu_seq_lens_q.to(torch.int32))


def _check_window(module: nn.Module, mask: Found, sliding_window: int | None, reach: int) -> None:
    for name, size in (("sliding_window", sliding_window), ("sliding window of the mask", mask.window)):
        if size is not None and reach > size:
            raise window_error(name, size, reach)
    if sliding_window is not None or mask.segments is None or mask.complete or torch.compiler.is_compiling():
        return
    # The mask was copied or is the caller's, and some models do not tell their layers of their window.
    window = getattr(getattr(module, "config", None), "sliding_window", None)
    if window is not None and reach > window:
        raise window_error("sliding_window of the config", window, reach)


def _check_packable(module: nn.Module) -> None:
    """Layers of other kinds (linear attention, state spaces, convolutions) carry a text's state into the next."""
    config = getattr(module, "config", None)
    kinds = set(getattr(config, "layer_types", None) or ()) | set(getattr(config, "layers_block_type", None) or ())
    attention = {"full_attention", "sliding_attention", "chunked_attention", "attention"}
    if kinds - attention or any(name.startswith("mamba_") for name in vars(config or object)):
        _refuse("packed texts", "models whose other layers do not separate them; pad them")
