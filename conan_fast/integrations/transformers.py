"""`attn_implementation="conan_soft_mask"` for transformers' decoder models (tested with Llama).

A packed batch is passed as one row of tokens with the keyword arguments that transformers already uses for packed
batches (`cu_seq_lens_q`, `max_length_q`); a padded batch with a 2-D `attention_mask` is packed here and unpacked again.
The soft mask's alpha comes with the call, `model(..., alpha=0.3)`; without it a model whose config says
`is_causal: false` is bidirectional (alpha = 1) and any other is causal (alpha = 0).
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask

from conan_fast.attention.operator import soft_mask_attention, soft_mask_attention_varlen

NAME = "conan_soft_mask"


def register() -> str:
    """Make `NAME` known to transformers; may be called more than once. Returns the name."""
    AttentionInterface.register(NAME, attention_forward)
    # As for the flash kernels, transformers passes the 2-D padding mask (None where nothing is padded), not a 4-D one.
    AttentionMaskInterface.register(NAME, flash_attention_mask)
    return NAME


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
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls in each layer.

    Args:
        query: [B, Hq, L, D]; key and value: [B, Hkv, L, D].
        attention_mask: [B, L], True for tokens, or None where no row is padded.
        alpha: of the soft mask, 0 (causal) to 1 (bidirectional); None: what `module.config.is_causal` says.
        cu_seq_lens_q: int32 [S + 1], the ends of the sequences of a packed batch (then B = 1).
        max_length_q: the longest of them.

    Returns:
        The output [B, L, Hq, D] and None (no attention weights exist).

    Raises:
        ValueError: for dropout, for a key/value cache, or a packed batch of more than one row.
    """
    if dropout:
        raise ValueError(
            f"dropout: {NAME} does not support dropout, got {dropout}; set attention_dropout=0 in the model's config"
        )
    if key.shape[2] != query.shape[2]:
        raise ValueError(
            f"key: {key.shape[2]} positions for {query.shape[2]} queries; {NAME} does not generate from a cache, "
            "load the model with attn_implementation='sdpa' for that"
        )
    if alpha is None:
        alpha = 0.0 if getattr(getattr(module, "config", None), "is_causal", True) else 1.0
    q_BLHD, k_BLHD, v_BLHD = (x.transpose(1, 2) for x in (query, key, value))

    if cu_seq_lens_q is not None:
        if q_BLHD.shape[0] != 1:
            raise ValueError(f"cu_seq_lens_q: a packed batch has one row, got {q_BLHD.shape[0]}")
        if max_length_q is None:
            raise ValueError("max_length_q: goes with cu_seq_lens_q, got None")
        out = soft_mask_attention_varlen(
            q_BLHD[0], k_BLHD[0], v_BLHD[0], cu_seq_lens_q, int(max_length_q), alpha,
            saturation=saturation, scale=scaling,
        )  # fmt: skip
        return out[None], None
    if attention_mask is None:
        return soft_mask_attention(q_BLHD, k_BLHD, v_BLHD, alpha, saturation=saturation, scale=scaling), None
    qkv = q_BLHD, k_BLHD, v_BLHD
    return _attend_padded(qkv, attention_mask, alpha, saturation=saturation, scale=scaling), None


def _attend_padded(
    qkv: tuple[Tensor, Tensor, Tensor], mask_BL: Tensor, alpha: float | Tensor, **options: Any
) -> Tensor:
    """Packs the rows of q, k and v [B, L, heads, D] that are tokens, and unpacks the output; padding becomes 0."""
    tokens_BL = mask_BL.bool()
    lengths_B = tokens_BL.sum(1, dtype=torch.int32)
    cu_seqlens = nn.functional.pad(lengths_B.cumsum(0, dtype=torch.int32), (1, 0))
    q, k, v = (x[tokens_BL] for x in qkv)
    packed_out = soft_mask_attention_varlen(q, k, v, cu_seqlens, int(lengths_B.max()), alpha, **options)
    out = packed_out.new_zeros(qkv[0].shape)
    out[tokens_BL] = packed_out
    return out
