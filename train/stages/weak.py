"""Stage 3: weakly supervised embedding, in-batch InfoNCE (eq. 1) while the mask turns from causal to bidirectional."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaForCausalLM

from conan_fast import SoftMaskSchedule, info_nce
from train.embedding_loss import Embedding, backward_through_embeddings
from train.loop import Stage
from train.metrics import Values
from train.pairs import PairTable
from train.recipe import WeakRecipe
from train.sampling import SourceSampler
from train.tokenizer import encode


class Weak(Stage[WeakRecipe]):
    """Each step takes its rows from one source; the sources take turns by weight."""

    name = "weak"

    def __init__(
        self,
        recipe: WeakRecipe,
        tables: Sequence[PairTable],
        tokenizer: Tokenizer,
        *,
        seed: int,
        device: torch.device,
        precision: str,
    ) -> None:
        self.recipe, self._tables, self._tokenizer = recipe, tables, tokenizer
        self._device, self._precision = device, precision
        self._sampler = SourceSampler(recipe.sources, [table.languages for table in tables], (seed, 3))
        # alpha is 0 at the first step and 1 at the last.
        self._schedule = (
            None if recipe.soft_mask == "off" else SoftMaskSchedule(recipe.steps - 1, curve=recipe.soft_mask)
        )

    def alpha(self, step: int) -> float:
        """Strength of the soft mask; "off" is bidirectional from the first step."""
        return 1.0 if self._schedule is None else self._schedule(step)

    def backward(self, model: LlamaForCausalLM, step: int) -> tuple[Values, int]:
        turn, rows = self._sampler.take()
        source, table = self.recipe.sources[turn], self._tables[turn]
        # A text that comes twice (an English message beside its translations) is embedded once.
        numbers = np.concatenate([table.queries[rows], table.positives[rows]])
        unique, inverse = np.unique(numbers, return_inverse=True)
        sequences = encode(self._tokenizer, [table.texts[i] for i in unique], source.max_length)
        place = torch.from_numpy(inverse).to(self._device)
        ids = torch.from_numpy(table.groups[table.queries[rows]]).to(self._device)

        def loss_of(embeddings: Tensor) -> Tensor:
            queries, positives = embeddings[place].chunk(2)
            return info_nce(
                queries, positives, temperature=self.recipe.temperature, dims=self.recipe.dims or None, positive_ids=ids
            ).loss

        alpha = self.alpha(step)
        embedding = Embedding(
            self._device, self._precision, self.recipe.micro_batch_tokens, alpha, self.recipe.saturation
        )
        loss = backward_through_embeddings(model, sequences, embedding, loss_of)
        return {"loss": loss, f"loss/{source.path}": loss, "alpha": alpha}, sum(map(len, sequences))

    def state(self) -> dict[str, Any]:
        return self._sampler.state()

    def load_state(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self._sampler.load_state(state)
