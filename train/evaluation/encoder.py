"""Encoders: texts to vectors, for evaluation and for mining."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import LlamaForCausalLM

from train.loop import autocast
from train.model import embed
from train.packing import pack, split_by_tokens
from train.tokenizer import token_ids


class TextEncoder(Protocol):
    """Anything that turns texts into vectors."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[n, hidden] float32, finite. Rows need not be normalized, as cosine similarity is used."""
        ...


class ModelEncoder:
    """Mean-pooled embeddings of a trained model under a fixed mask.

    Args:
        alpha: 0 is causal (language model), 1 bidirectional (embedder).
        max_length: each text is truncated to this many tokens.
        batch_tokens: tokens of one forward pass.
        precision: as in the recipe.
        progress: label of the progress bar; "" for none.
    """

    def __init__(
        self,
        model: LlamaForCausalLM,
        tokenizer: Tokenizer,
        *,
        alpha: float,
        max_length: int,
        batch_tokens: int,
        precision: str = "fp32",
        progress: str = "",
    ) -> None:
        self.model, self.tokenizer, self.alpha = model, tokenizer, alpha
        self.max_length, self.batch_tokens = max_length, batch_tokens
        self.precision, self.progress = precision, progress

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[n, hidden] float32, not normalized."""
        device = next(self.model.parameters()).device
        sequences = token_ids(self.tokenizer, texts, self.max_length)
        # Batches of similar lengths make the attention work on nearly square blocks.
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]), reverse=True)
        out = np.empty((len(sequences), self.model.config.hidden_size), dtype=np.float32)
        bar = tqdm(
            total=len(texts), desc=f"{self.progress:>11}", unit="text", disable=not self.progress, dynamic_ncols=True
        )
        with bar, autocast(device, self.precision):
            for micro_batch in split_by_tokens([len(sequences[i]) for i in order], self.batch_tokens):
                rows = [order[i] for i in micro_batch]
                packed = pack([sequences[i] for i in rows], device)
                out[rows] = embed(self.model, packed, self.alpha).cpu().numpy()
                bar.update(len(rows))
        return out
