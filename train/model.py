"""The model: transformers' Llama with the soft-masked attention, packed batches and mean pooling.

The paper names neither norm, activation, position encoding nor pooling; RMSNorm, SwiGLU, RoPE (the Llama block) and
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
from train.packing import Packed
from train.recipe import ModelRecipe

# At most this many logits are alive at a time (1 GB in float32): about 1,800 tokens at a vocabulary of 150,000.
MAX_LOGITS = 2**28


def build_model(recipe: ModelRecipe, vocab_size: int) -> LlamaForCausalLM:
    """A Llama with random weights on the current default device (use `torch.device("meta")` to only count)."""
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
    """A model that `save_model` wrote, in float32."""
    return LlamaForCausalLM.from_pretrained(folder, attn_implementation=register(), dtype=torch.float32)


def save_model(model: LlamaForCausalLM, folder: Path, *, is_causal: bool) -> None:
    """Write safetensors and config.json; `is_causal: false` is what makes AutoModel run it bidirectionally."""
    model.save_pretrained(folder, safe_serialization=True)
    config_file = folder / "config.json"
    config: dict[str, Any] = json.loads(config_file.read_text())
    config["is_causal"] = is_causal
    config_file.write_text(json.dumps(config, indent=2) + "\n")


def hidden_states(model: LlamaForCausalLM, batch: Packed, alpha: float | Tensor, saturation: str = "key") -> Tensor:
    """Last hidden states [T, hidden] of a packed batch under the soft mask of strength alpha."""
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
    """Mean-pooled embeddings [S, hidden], float32, not normalised (the losses use cosine similarity)."""
    hidden_TD = hidden_states(model, batch, alpha, saturation).float()
    return torch.segment_reduce(hidden_TD, "mean", offsets=batch.cu_seqlens.long(), axis=0)


def next_token_loss(
    model: LlamaForCausalLM, batch: Packed, num_targets: int, logit_bias: Tensor | None = None
) -> Tensor:
    """Sum of the cross-entropies of a causally masked packed batch over `num_targets` (those of the whole step).

    Args:
        logit_bias: [vocabulary], added to the logits; None for nothing.

    Raises:
        ValueError: if the batch was packed without labels.
    """
    if batch.labels is None:
        raise ValueError("batch: has no labels; pack it with with_labels=True")
    hidden_TD = hidden_states(model, batch, 0.0)
    learnt = batch.labels != Packed.IGNORE
    hidden_TD, labels_T = hidden_TD[learnt], batch.labels[learnt]
    total = hidden_TD.new_zeros((), dtype=torch.float32)
    rows = max(1, MAX_LOGITS // model.config.vocab_size)
    if len(labels_T) <= rows:  # no recomputation where all logits fit
        return _cross_entropy_sum(hidden_TD, model.lm_head.weight, labels_T, logit_bias) / num_targets
    total = hidden_TD.new_zeros((), dtype=torch.float32)
    for hidden, labels in zip(hidden_TD.split(rows), labels_T.split(rows), strict=True):
        total = total + checkpoint(
            _cross_entropy_sum, hidden, model.lm_head.weight, labels, logit_bias, use_reentrant=False
        )
    return total / num_targets


def _cross_entropy_sum(hidden: Tensor, weight: Tensor, labels: Tensor, logit_bias: Tensor | None) -> Tensor:
    logits = torch.nn.functional.linear(hidden, weight).float()
    if logit_bias is not None:
        logits = logits + logit_bias
    return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
