"""The model: transformers' Llama with soft-masked attention, packed batches and mean pooling.

The paper specifies neither norm, activation, position encoding nor pooling; RMSNorm, SwiGLU, RoPE (the Llama block) and
mean pooling are our choice. Embeddings are tied by default, as the paper's parameter count implies.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

from conan_fast.integrations.transformers import register
from conan_fast.integrations.transformers.saved_model import BIDIRECTIONAL
from train.packing import Packed
from train.recipe import ModelRecipe

# Bound of the logits in memory at a time (1 GB in float32): about 1,800 tokens for a vocabulary of 150,000.
MAX_LOGITS = 2**28


def build_model(recipe: ModelRecipe, vocab_size: int) -> LlamaForCausalLM:
    """A Llama with random weights on torch's default device (`torch.device("meta")` allocates no memory)."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_hidden_layers,
        num_attention_heads=recipe.num_attention_heads,
        num_key_value_heads=recipe.num_key_value_heads,
        head_dim=recipe.hidden_size // recipe.num_attention_heads,
        max_position_embeddings=recipe.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        initializer_range=recipe.initializer_range,
        tie_word_embeddings=recipe.tie_word_embeddings,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
    )
    config._attn_implementation = register()
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(recipe.embedding_std / recipe.initializer_range)
        if recipe.depth_scaled_init:
            for layer in model.model.layers:
                for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
                    projection.weight.mul_((2 * recipe.num_hidden_layers) ** -0.5)
    return model


def load_model(folder: Path) -> LlamaForCausalLM:
    """Load a model written by `save_model`, in float32."""
    return LlamaForCausalLM.from_pretrained(folder, attn_implementation=register(), dtype=torch.float32)


def save_model(model: LlamaForCausalLM, folder: Path, *, is_causal: bool) -> None:
    """Write safetensors and config.json. With `is_causal: false` AutoModel runs the model bidirectionally."""
    model.save_pretrained(folder, safe_serialization=True)
    config_file = folder / "config.json"
    config: dict[str, Any] = json.loads(config_file.read_text())
    config |= {"is_causal": True} if is_causal else BIDIRECTIONAL
    config_file.write_text(json.dumps(config, indent=2) + "\n")


def hidden_states(model: LlamaForCausalLM, batch: Packed, alpha: float | Tensor, saturation: str = "key") -> Tensor:
    """Last hidden states [T, hidden] of a packed batch under the soft mask with strength alpha."""
    output = model.model(
        input_ids=batch.input_ids[None],
        position_ids=batch.position_ids[None],
        cu_seq_lens_q=batch.cu_seqlens,
        max_length_q=batch.max_seqlen,
        alpha=alpha,
        saturation=saturation,
    )
    return output.last_hidden_state[0]


def embed(model: LlamaForCausalLM, batch: Packed, alpha: float | Tensor, saturation: str = "key") -> Tensor:
    """Mean-pooled embeddings [S, hidden], float32, not normalized (the losses use cosine similarity)."""
    hidden_TD = hidden_states(model, batch, alpha, saturation).float()
    return torch.segment_reduce(hidden_TD, "mean", offsets=batch.cu_seqlens.long(), axis=0)


def next_token_loss(
    model: LlamaForCausalLM, batch: Packed, num_targets: int, logit_bias: Tensor | None = None
) -> Tensor:
    """Sum of the cross-entropies of a packed batch under the causal mask, divided by `num_targets`.

    Args:
        num_targets: predicted tokens of the whole step, of which the batch may be one micro-batch.
        logit_bias: float32 [vocab_size], added to the logits; or None.

    Raises:
        ValueError: the batch has no labels.
    """
    if batch.labels is None:
        raise ValueError("batch: got no labels; pack it with with_labels=True")
    hidden_TD = hidden_states(model, batch, 0.0)
    predicted = batch.labels != Packed.IGNORE
    hidden_TD, labels_T = hidden_TD[predicted], batch.labels[predicted]
    chunk_size = max(1, MAX_LOGITS // model.config.vocab_size)
    if len(labels_T) <= chunk_size:  # all logits fit: no recomputation
        return _cross_entropy_sum(hidden_TD, model.lm_head.weight, labels_T, logit_bias) / num_targets
    total = hidden_TD.new_zeros((), dtype=torch.float32)
    for hidden, labels in zip(hidden_TD.split(chunk_size), labels_T.split(chunk_size), strict=True):
        total = total + checkpoint(
            _cross_entropy_sum, hidden, model.lm_head.weight, labels, logit_bias, use_reentrant=False
        )
    return total / num_targets


def _cross_entropy_sum(hidden: Tensor, weight: Tensor, labels: Tensor, logit_bias: Tensor | None) -> Tensor:
    logits = torch.nn.functional.linear(hidden, weight).float()
    if logit_bias is not None:
        logits = logits + logit_bias
    return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
