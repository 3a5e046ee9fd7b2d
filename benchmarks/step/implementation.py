"""What an implementation of a training step is to the benchmark, and how much memory it needs."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaModel

from benchmarks.step.models import Parameters, recipe_of
from benchmarks.step.task import STEP, Case, StageName, Task, lengths
from benchmarks.suite import Implementation
from train.loop import Stage, make_optimizer, train_step

STATE_BYTES = 16  # a parameter, its gradient and two moments, in float32
COPY_BYTES = 2  # of a matrix: autocast's in bfloat16


class Running(ABC):
    """A model under training with its optimiser. llama: the layers; its config names the attention function."""

    llama: LlamaModel
    optimizer: torch.optim.Optimizer

    @abstractmethod
    def backward(self, task: Task) -> Tensor:
        """The loss of the task's batch; adds its gradients to the parameters. No optimiser step."""

    @abstractmethod
    def step(self) -> None:
        """One optimiser step on the batch of the task it was made for, from texts; leaves no gradients."""

    def marked_loss(self) -> AbstractContextManager[object]:
        """Within it the loss runs under record_function("loss"), unless it always does or cannot be separated."""
        return nullcontext()


class StageRunning(Running):
    """A stage in the training program's own loop."""

    def __init__(self, task: Task) -> None:
        self.model = task.model()
        self.llama = self.model.model
        self.stage = self.stage_of(task)
        self.optimizer = make_optimizer(self.model, self.stage.recipe)

    @abstractmethod
    def stage_of(self, task: Task) -> Stage[Any]:
        """Its batch is all pairs of the task."""

    def backward(self, task: Task) -> Tensor:
        values, _ = self.stage_of(task).backward(self.model, STEP)
        return torch.as_tensor(values["loss"])

    def step(self) -> None:
        train_step(self.stage, self.model, self.optimizer, STEP)
        self.optimizer.zero_grad(set_to_none=True)  # the next step would; until then others have the memory


@dataclass(frozen=True)
class StepImplementation(Implementation):
    """alpha: of the soft mask that it applies, None for the stage's. padded: its batches are, and its loss is eager.

    one_pass: the whole batch at once. in_parts: only for batches of several micro-batches, else it equals another.
    """

    build: Callable[[Task], Running]
    padded: bool = True
    one_pass: bool = False
    in_parts: bool = False
    alpha: float | None = None
    stages: tuple[StageName, ...] = ("weak", "supervised")

    def reason(self, case: Case) -> str | None:
        """Why the case is skipped, None if it is not."""
        if case.stage not in self.stages:
            return f"is for the {' and the '.join(self.stages)} stage"
        if self.in_parts and padded_tokens(case) <= case.micro_batch_tokens:
            return "the padded batch fits into one micro-batch: the same as transformers_sdpa"
        return None

    def bytes_needed(self, case: Case) -> int:
        if self.reason(case):
            return 0
        recipe = recipe_of(case.model)
        parameters, embeddings = Parameters(recipe), 4 * case.texts * recipe.model.hidden_size
        states = STATE_BYTES * parameters.total + COPY_BYTES * parameters.matrices
        squares = 3 + 2 * len(case.dims) if self.padded else 0  # N x M elements that an eager loss holds
        scores = 4 * squares * case.batch_size * (case.texts - case.batch_size)
        return states + self.tokens_at_once(case) * activation_bytes(case) + scores + 4 * embeddings

    def tokens_at_once(self, case: Case) -> int:
        """Positions of its largest forward pass with a graph. A text longer than a micro-batch is one of its own."""
        tokens = padded_tokens(case) if self.padded else case.tokens
        return tokens if self.one_pass else max(int(lengths(case).max()), min(tokens, case.micro_batch_tokens))


def padded_tokens(case: Case) -> int:
    """Of the whole batch, padded to its longest text."""
    return case.texts * int(lengths(case).max())


def activation_bytes(case: Case) -> int:
    """About what a token leaves for the backward pass under autocast, by what each operation of a layer saves.

    Norms: input and normalised in float32, output in bfloat16, twice. Attention: q and k before and after the rotation
    and v, its result, the residual. MLP: gate, its activation, up and their product.
    """
    model = recipe_of(case.model).model
    key_values = 2 * model.num_key_value_heads * model.hidden_size // model.num_attention_heads
    layer = 36 * model.hidden_size + 12 * key_values + 8 * model.intermediate_size
    return model.num_hidden_layers * layer + 12 * model.hidden_size
