"""Stage 3: weakly supervised embedding, in-batch InfoNCE (eq. 1) while the mask goes from causal to bidirectional."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from conan_fast import SoftMaskSchedule, info_nce
from train.embedding_loss import EmbedSettings, backward_through_embeddings
from train.loop import Stage, StageContext
from train.metrics import Values
from train.pairs import PairTable
from train.recipe import WeakRecipe
from train.sampling import SourceSampler
from train.tokenizer import token_ids


class Weak(Stage[WeakRecipe]):
    """The sources take turns by weight; the rows of a step come from one source."""

    name = "weak"
    sampler: SourceSampler

    def __init__(self, recipe: WeakRecipe, tables: Sequence[PairTable], context: StageContext) -> None:
        """`tables`: per source of the recipe its pairs."""
        self.recipe, self.context, self._tables = recipe, context, tables
        self.sampler = SourceSampler(recipe.sources, [table.languages for table in tables], (context.seed, 3))
        # alpha is 0 in the first step and 1 in the last.
        self._schedule = (
            None if recipe.soft_mask == "off" else SoftMaskSchedule(recipe.steps - 1, curve=recipe.soft_mask)
        )

    def alpha(self, step: int) -> float:
        """Strength of the soft mask; with soft_mask "off", bidirectional from the first step."""
        return 1.0 if self._schedule is None else self._schedule(step)

    def backward(self, model: LlamaForCausalLM, step: int) -> tuple[Values, int]:
        recipe, context = self.recipe, self.context
        source_index, rows = self.sampler.take()
        source, table = recipe.sources[source_index], self._tables[source_index]
        # A text that occurs twice (an English message with several translations) is embedded once.
        texts = np.concatenate([table.queries[rows], table.positives[rows]])
        unique, inverse = np.unique(texts, return_inverse=True)
        sequences = token_ids(context.tokenizer, [table.texts[i] for i in unique], source.max_length)
        positions = torch.from_numpy(inverse).to(context.device)
        groups = torch.from_numpy(table.groups[table.queries[rows]]).to(context.device)

        def loss_of(embeddings: Tensor) -> Tensor:
            queries, positives = embeddings[positions].chunk(2)
            return info_nce(
                queries, positives, temperature=recipe.temperature, dims=recipe.dims or None, positive_ids=groups
            ).loss

        alpha = self.alpha(step)
        settings = EmbedSettings(context.device, context.precision, recipe.micro_batch_tokens, alpha, recipe.saturation)
        loss = backward_through_embeddings(model, sequences, settings, loss_of)
        return {"loss": loss, f"loss/{source.path}": loss, "alpha": alpha}, sum(map(len, sequences))
