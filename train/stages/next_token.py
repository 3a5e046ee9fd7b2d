"""What stages 1 and 2 share: the loss of next-token prediction under the causal mask, and the unigram bias."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from train.loop import Stage, StageContext, autocast
from train.metrics import Values
from train.model import next_token_loss
from train.packing import pack, split_by_tokens
from train.recipe import LanguageModelRecipe
from train.tokenizer import END_ID

L = TypeVar("L", bound=LanguageModelRecipe)


class NextTokenStage(Stage[L]):
    context: StageContext
    logit_bias: Tensor | None = None

    def backward_next_token(
        self, model: LlamaForCausalLM, sequences: Sequence[Sequence[int]], prompt_lengths: Sequence[int]
    ) -> tuple[Values, int]:
        """Add the gradients of a step's sequences; the first prompt_lengths tokens of each are not predicted.

        Returns:
            As `Stage.backward`.
        """
        device = self.context.device
        num_targets = sum(len(s) - max(p, 1) for s, p in zip(sequences, prompt_lengths, strict=True))
        loss = torch.zeros((), device=device)
        for micro_batch in split_by_tokens([len(s) for s in sequences], self.recipe.micro_batch_tokens):
            lengths = [prompt_lengths[i] for i in micro_batch]
            packed = pack([sequences[i] for i in micro_batch], device, prompt_lengths=lengths)
            with autocast(device, self.context.precision):
                micro_loss = next_token_loss(model, packed, num_targets, self.logit_bias)
            micro_loss.backward()
            loss += micro_loss.detach()
        return {"loss": loss, "alpha": 0.0}, sum(len(s) for s in sequences)


def unigram_bias(sequences: Iterable[Sequence[int]], vocab_size: int) -> Tensor:
    """Log frequency of each token, float32 [vocab_size], with add-one smoothing.

    One END_ID is counted per sequence in addition to its tokens.
    """
    counts = np.ones(vocab_size)
    for sequence in sequences:
        np.add.at(counts, sequence, 1)
        counts[END_ID] += 1
    return torch.from_numpy(np.log(counts / counts.sum())).float()
