"""The training program's own stages and loop: packed texts, soft-masked attention, the one-pass loss."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
from torch.profiler import record_function

from benchmarks.step.implementation import StageRunning, StepImplementation
from benchmarks.step.task import Task
from conan_fast import info_nce
from train.loop import Stage, StageContext
from train.pairs import PairTable
from train.recipe import WeakRecipe
from train.stages import supervised, weak


class Ours(StageRunning):
    def stage_of(self, task: Task) -> Stage[Any]:
        table, recipe = PairTable.of(task.texts.rows), task.stage_recipe()
        context = StageContext(task.texts.tokenizer, 0, task.device, task.precision)
        if isinstance(recipe, WeakRecipe):
            return weak.Weak(recipe, [table], context)
        return supervised.Supervised(recipe, [(table, np.stack(table.negatives))], context)

    @contextmanager
    def marked_loss(self) -> Iterator[None]:
        loss = record_function("loss")(info_nce)
        with patch.object(weak, "info_nce", loss), patch.object(supervised, "info_nce", loss):
            yield


ABOUT = "train.loop.train_step: packed, soft-masked attention, one-pass loss"
IMPLEMENTATIONS = (StepImplementation("ours", "ours", ABOUT, Ours, padded=False),)
