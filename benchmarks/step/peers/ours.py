"""The training program's own stages and loop: packed texts, the soft mask's kernels, the one-pass loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from benchmarks.step.implementation import LossOf, Running, StepImplementation, of_micro_batch
from benchmarks.step.task import STEP, Task
from train.embedding_loss import EmbedSettings, backward_through_embeddings
from train.loop import Stage, StageContext, make_optimizer, train_step
from train.pairs import PairTable
from train.recipe import WeakRecipe
from train.stages import supervised, weak


def stage_of(task: Task) -> Stage[Any]:
    """Its batch is all pairs of the task."""
    table, recipe = PairTable.of(task.texts.rows), task.stage_recipe()
    context = StageContext(task.texts.tokenizer, 0, task.device, task.precision)
    if isinstance(recipe, WeakRecipe):
        return weak.Weak(recipe, [table], context)
    return supervised.Supervised(recipe, [(table, np.stack(table.negatives))], context)


class Ours(Running):
    def __init__(self, task: Task) -> None:
        self.model = task.model()
        self.llama = self.model.model
        self.stage = stage_of(task)
        self.optimizer = make_optimizer(self.model, self.stage.recipe)

    def backward(self, task: Task) -> Tensor:
        values, _ = stage_of(task).backward(self.model, STEP)
        return torch.as_tensor(values["loss"])

    def step(self) -> None:
        train_step(self.stage, self.model, self.optimizer, STEP)
        self.optimizer.zero_grad(set_to_none=True)  # the next step would; until then others have the memory

    @contextmanager
    def loss_through(self, wrap: Callable[[LossOf], LossOf]) -> Iterator[None]:
        def wrapped(
            model: LlamaForCausalLM, sequences: Sequence[Sequence[int]], settings: EmbedSettings, loss_of: LossOf
        ) -> Tensor:
            return backward_through_embeddings(model, sequences, settings, wrap(loss_of))

        name = backward_through_embeddings.__name__
        with patch.object(weak, name, wrapped), patch.object(supervised, name, wrapped):
            yield


IMPLEMENTATIONS = (
    StepImplementation(
        name="ours",
        role="ours",
        about="train.loop.train_step: packed, soft-masked attention, one-pass loss",
        build=Ours,
        tokens_at_once=lambda shape: of_micro_batch(shape, shape.tokens),
    ),
)
