"""Stage 4: supervised embedding.

InfoNCE with hard negatives for retrieval, CoSENT for STS, both for all Matryoshka dims. Negatives that became easy are
replaced during training (eq. 6).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlamaForCausalLM

from conan_fast import cosent, info_nce
from train.data.rows import Scored
from train.dynamic_negatives import DynamicNegatives, ReplacementRule
from train.embedding_loss import EmbedSettings, backward_through_embeddings
from train.loop import Stage, StageContext
from train.metrics import Values
from train.pairs import PairTable
from train.recipe import Source, SupervisedRecipe
from train.sampling import SourceSampler
from train.tokenizer import token_ids

StepResult = tuple[Tensor, int, dict[str, float | Tensor]]  # loss, number of tokens, other values to log


class _InfoNceObjective:
    """InfoNCE on (query, positive, hard negatives)."""

    def __init__(self, stage: "Supervised", source: Source, table: PairTable, pools: NDArray[np.int64]) -> None:
        recipe = stage.recipe
        rule = ReplacementRule(recipe.replace_below, recipe.replace_ratio, recipe.replace_max_score)
        self.stage, self.source, self.table = stage, source, table
        self.negatives = DynamicNegatives(pools, recipe.num_negatives, rule if recipe.dynamic_negatives else None)

    def backward(self, model: LlamaForCausalLM, rows: NDArray[np.int64]) -> StepResult:
        recipe, table, context = self.stage.recipe, self.table, self.stage.context
        negatives_NK = self.negatives.current(rows)
        texts = np.concatenate([table.queries[rows], table.positives[rows], negatives_NK.ravel()])
        unique, inverse = np.unique(texts, return_inverse=True)
        sequences = token_ids(context.tokenizer, [table.texts[i] for i in unique], self.source.max_length)
        positions = torch.from_numpy(inverse).to(context.device)
        groups = torch.from_numpy(table.groups[texts]).to(context.device)
        n, k = negatives_NK.shape
        scores: list[Tensor] = []

        def loss_of(embeddings: Tensor) -> Tensor:
            queries, positives, negatives = embeddings[positions].split([n, n, n * k])
            result = info_nce(
                queries,
                positives,
                negatives.view(n, k, -1) if k else None,
                temperature=recipe.temperature,
                dims=recipe.dims or None,
                positive_ids=groups[n : 2 * n],
                negative_ids=groups[2 * n :].view(n, k) if k else None,
                negative_scope=recipe.negative_scope,
            )
            if result.negative_scores is not None:
                scores.append(result.negative_scores)
            return result.loss

        loss = backward_through_embeddings(model, sequences, self.stage.embed_settings, loss_of)
        values: dict[str, float | Tensor] = {}
        if scores:
            values["replaced"] = self.negatives.update(rows, scores[0])
            values["negative_score"] = scores[0].mean()
        return loss, sum(map(len, sequences)), values


class _CosentObjective:
    """CoSENT (eq. 2) on pairs of texts with a graded similarity."""

    def __init__(self, stage: "Supervised", source: Source, rows: Sequence[Scored]) -> None:
        self.stage, self.source, self.rows = stage, source, rows

    def backward(self, model: LlamaForCausalLM, rows: NDArray[np.int64]) -> StepResult:
        recipe, context = self.stage.recipe, self.stage.context
        scored = [self.rows[i] for i in rows]
        texts = [row.a for row in scored] + [row.b for row in scored]
        sequences = token_ids(context.tokenizer, texts, self.source.max_length)
        labels = torch.tensor([row.score for row in scored], device=context.device)

        def loss_of(embeddings: Tensor) -> Tensor:
            a, b = embeddings.chunk(2)
            return cosent(a, b, labels, temperature=recipe.cosent_temperature, dims=recipe.dims or None)

        loss = backward_through_embeddings(model, sequences, self.stage.embed_settings, loss_of)
        return loss, sum(map(len, sequences)), {}


class Supervised(Stage[SupervisedRecipe]):
    """The sources take turns by weight; the rows of a step come from one source."""

    name = "supervised"
    sampler: SourceSampler

    def __init__(
        self,
        recipe: SupervisedRecipe,
        data: Sequence[tuple[PairTable, NDArray[np.int64]] | Sequence[Scored]],
        context: StageContext,
    ) -> None:
        """`data`: per source of the recipe either its pairs and their pools [n, P] (see train.stages.mine), or its
        scored rows."""
        self.recipe, self.context = recipe, context
        self.embed_settings = EmbedSettings(context.device, context.precision, recipe.micro_batch_tokens)
        self._objectives: list[_InfoNceObjective | _CosentObjective] = []
        languages: list[Sequence[str]] = []
        for source, content in zip(recipe.sources, data, strict=True):
            if isinstance(content, tuple):
                self._objectives.append(_InfoNceObjective(self, source, *content))
                languages.append(content[0].languages)
            else:
                self._objectives.append(_CosentObjective(self, source, content))
                languages.append([""] * len(content))
        self.sampler = SourceSampler(recipe.sources, languages, (context.seed, 4))

    def backward(self, model: LlamaForCausalLM, step: int) -> tuple[Values, int]:
        source_index, rows = self.sampler.take()
        objective = self._objectives[source_index]
        loss, tokens, values = objective.backward(model, rows)
        return {"loss": loss, f"loss/{objective.source.path}": loss, "alpha": 1.0, **values}, tokens

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{i}.{name}": tensor
            for i, objective in enumerate(self._objectives)
            if isinstance(objective, _InfoNceObjective)
            for name, tensor in objective.negatives.tensors().items()
        }

    def load_state(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().load_state(state, tensors)
        for i, objective in enumerate(self._objectives):
            if isinstance(objective, _InfoNceObjective):
                prefix = f"{i}."
                saved = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
                objective.negatives.load_tensors(saved)
