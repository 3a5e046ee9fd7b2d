"""Stage 4: supervised embedding. InfoNCE with hard negatives for retrieval and cross-lingual retrieval, CoSENT for STS,
both at all Matryoshka dims; hard negatives that became easy are replaced while training (eq. 6)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaForCausalLM

from conan_fast import cosent, info_nce
from train.data.rows import Scored
from train.dynamic_negatives import DynamicNegatives, ReplacementRule
from train.embedding_loss import Embedding, backward_through_embeddings
from train.loop import Stage
from train.metrics import Values
from train.pairs import PairTable
from train.recipe import Source, SupervisedRecipe
from train.sampling import SourceSampler
from train.tokenizer import encode

Step = tuple[Tensor, int, dict[str, float | Tensor]]  # loss, tokens, what else to report


class _PairTask:
    """InfoNCE on (query, positive, hard negatives)."""

    def __init__(self, stage: "Supervised", source: Source, table: PairTable, pools: NDArray[np.int64]) -> None:
        recipe = stage.recipe
        rule = ReplacementRule(recipe.replace_below, recipe.replace_ratio, recipe.replace_max_score)
        self.stage, self.source, self.table = stage, source, table
        self.negatives = DynamicNegatives(pools, recipe.num_negatives, rule if recipe.dynamic_negatives else None)

    def backward(self, model: LlamaForCausalLM, rows: NDArray[np.int64]) -> Step:
        recipe, table, device = self.stage.recipe, self.table, self.stage.device
        negatives_NK = self.negatives.current(rows)
        numbers = np.concatenate([table.queries[rows], table.positives[rows], negatives_NK.ravel()])
        unique, inverse = np.unique(numbers, return_inverse=True)
        sequences = encode(self.stage.tokenizer, [table.texts[i] for i in unique], self.source.max_length)
        place = torch.from_numpy(inverse).to(device)
        ids = torch.from_numpy(table.groups[numbers]).to(device)
        n, k = negatives_NK.shape
        scores: list[Tensor] = []

        def loss_of(embeddings: Tensor) -> Tensor:
            queries, positives, negatives = embeddings[place].split([n, n, n * k])
            result = info_nce(
                queries,
                positives,
                negatives.view(n, k, -1) if k else None,
                temperature=recipe.temperature,
                dims=recipe.dims or None,
                positive_ids=ids[n : 2 * n],
                negative_ids=ids[2 * n :].view(n, k) if k else None,
                negative_scope=recipe.negative_scope,
            )
            if result.negative_scores is not None:
                scores.append(result.negative_scores)
            return result.loss

        loss = backward_through_embeddings(model, sequences, self.stage.embedding, loss_of)
        report: dict[str, float | Tensor] = {}
        if scores:
            report["replaced"] = self.negatives.update(rows, scores[0])
            report["negative_score"] = scores[0].mean()
        return loss, sum(map(len, sequences)), report


class _ScoredTask:
    """CoSENT (eq. 2) on pairs of texts with a graded similarity."""

    def __init__(self, stage: "Supervised", source: Source, rows: Sequence[Scored]) -> None:
        self.stage, self.source, self.rows = stage, source, rows

    def backward(self, model: LlamaForCausalLM, rows: NDArray[np.int64]) -> Step:
        recipe = self.stage.recipe
        scored = [self.rows[i] for i in rows]
        texts = [row.a for row in scored] + [row.b for row in scored]
        sequences = encode(self.stage.tokenizer, texts, self.source.max_length)
        labels = torch.tensor([row.score for row in scored], device=self.stage.device)

        def loss_of(embeddings: Tensor) -> Tensor:
            a, b = embeddings.chunk(2)
            return cosent(a, b, labels, temperature=recipe.cosent_temperature, dims=recipe.dims or None)

        loss = backward_through_embeddings(model, sequences, self.stage.embedding, loss_of)
        return loss, sum(map(len, sequences)), {}


class Supervised(Stage[SupervisedRecipe]):
    """Each step takes its rows from one source; the sources take turns by weight."""

    name = "supervised"

    def __init__(
        self,
        recipe: SupervisedRecipe,
        data: Sequence[tuple[PairTable, NDArray[np.int64]] | Sequence[Scored]],
        tokenizer: Tokenizer,
        *,
        seed: int,
        device: torch.device,
        precision: str,
    ) -> None:
        """`data`: for each source of the recipe its pairs and their pools [n, P] (see train.stages.mine), or its
        scored rows."""
        self.recipe, self.tokenizer, self.device = recipe, tokenizer, device
        self.embedding = Embedding(device, precision, recipe.micro_batch_tokens)
        self._tasks: list[_PairTask | _ScoredTask] = [
            _PairTask(self, source, *content) if isinstance(content, tuple) else _ScoredTask(self, source, content)
            for source, content in zip(recipe.sources, data, strict=True)
        ]
        languages = [content[0].languages if isinstance(content, tuple) else [""] * len(content) for content in data]
        self._sampler = SourceSampler(recipe.sources, languages, (seed, 4))

    def backward(self, model: LlamaForCausalLM, step: int) -> tuple[Values, int]:
        turn, rows = self._sampler.take()
        task = self._tasks[turn]
        loss, tokens, report = task.backward(model, rows)
        return {"loss": loss, f"loss/{task.source.path}": loss, "alpha": 1.0, **report}, tokens

    def state(self) -> dict[str, Any]:
        return self._sampler.state()

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{i}.{name}": tensor
            for i, task in enumerate(self._tasks)
            if isinstance(task, _PairTask)
            for name, tensor in task.negatives.tensors().items()
        }

    def load_state(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self._sampler.load_state(state)
        for i, task in enumerate(self._tasks):
            if isinstance(task, _PairTask):
                own = {key.split(".")[1]: tensor for key, tensor in tensors.items() if key.startswith(f"{i}.")}
                task.negatives.load_tensors(own)
