"""The training program's own stages and loop: packed texts, soft-masked attention, the one-pass loss."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from benchmarks.step.implementation import Running, StepImplementation, of_micro_batch
from benchmarks.step.task import STEP, Task
from conan_fast import info_nce
from train.loop import Stage, make_optimizer, train_step
from train.pairs import PairTable
from train.recipe import WeakRecipe
from train.stages import supervised, weak


def stage_of(task: Task) -> Stage[Any]:
    """Its batch is all pairs of the task."""
    table, recipe, tokenizer = PairTable.of(task.texts.rows), task.stage_recipe(), task.texts.tokenizer
    options: dict[str, Any] = {"seed": 0, "device": task.device, "precision": task.precision}
    if isinstance(recipe, WeakRecipe):
        return weak.Weak(recipe, [table], tokenizer, **options)
    return supervised.Supervised(recipe, [(table, np.stack(table.negatives))], tokenizer, **options)


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
    def marked_loss(self) -> Iterator[None]:
        loss = record_function("loss")(info_nce)
        with patch.object(weak, "info_nce", loss), patch.object(supervised, "info_nce", loss):
            yield


ABOUT = "train.loop.train_step: packed, soft-masked attention, one-pass loss"
IMPLEMENTATIONS = (StepImplementation("ours", "ours", ABOUT, Ours, lambda case: of_micro_batch(case, case.tokens)),)
