"""Texts to embeddings with a trained model: for evaluation and for mining."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import LlamaForCausalLM

from train.loop import autocast
from train.model import embed
from train.packing import pack, split_by_tokens
from train.tokenizer import encode


class ModelEncoder:
    """Mean-pooled embeddings under a fixed mask: alpha 0 is causal (language model), 1 bidirectional (embedder)."""

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
        self.max_length, self.batch_tokens, self.precision, self.progress = (
            max_length,
            batch_tokens,
            precision,
            progress,
        )

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[n, hidden] float32, not normalised."""
        device = next(self.model.parameters()).device
        sequences = encode(self.tokenizer, texts, self.max_length)
        # Similar lengths together: the attention then works on nearly square blocks.
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]), reverse=True)
        out = np.empty((len(sequences), self.model.config.hidden_size), dtype=np.float32)
        bar = tqdm(
            total=len(texts), desc=f"{self.progress:>11}", unit="text", disable=not self.progress, dynamic_ncols=True
        )
        with bar, autocast(device, self.precision):
            for part in split_by_tokens([len(sequences[i]) for i in order], self.batch_tokens):
                rows = [order[i] for i in part]
                batch = pack([sequences[i] for i in rows], device)
                out[rows] = embed(self.model, batch, self.alpha).cpu().numpy()
                bar.update(len(rows))
        return out
