"""What an implementation of a training step is to the benchmark."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaModel

from benchmarks.peer import Implementation
from benchmarks.step.models import Parameters, recipe_of
from benchmarks.step.shape import Shape, Stage, lengths
from benchmarks.step.task import Task

LossOf = Callable[[Tensor], Tensor]  # of the embeddings [S, hidden] of a step's texts

STATE_BYTES = 16  # a parameter, its gradient and two moments, in float32
COPY_BYTES = 2  # of a matrix: autocast's in bfloat16
BOTH: tuple[Stage, ...] = ("weak", "supervised")


class Running(ABC):
    """A model under training with its optimiser. llama: the layers, and the attention function by its config."""

    llama: LlamaModel
    optimizer: torch.optim.Optimizer

    @abstractmethod
    def backward(self, task: Task) -> Tensor:
        """The loss of the task's batch; adds its gradients to the parameters. No optimiser step."""

    @abstractmethod
    def step(self) -> None:
        """One optimiser step on the batch of the task it was made for, from texts; leaves no gradients."""

    def loss_through(self, wrap: Callable[[LossOf], LossOf]) -> AbstractContextManager[object] | None:
        """Within it, steps use wrap(loss) for the loss; None where a loss is not to be had by itself."""
        return None


@dataclass(frozen=True, kw_only=True)
class StepImplementation(Implementation):
    """alpha: of the soft mask that it applies, None for the stage's. why_not: what it says of a shape it does not do.

    tokens_at_once: positions of its largest forward pass with a graph, padding too. squares: N x M numbers that its
    loss holds, by the number of dims.
    """

    build: Callable[[Task], Running]
    tokens_at_once: Callable[[Shape], int]
    squares: Callable[[int], int] = lambda _: 0
    alpha: float | None = None
    stages: tuple[Stage, ...] = BOTH
    why_not: Callable[[Shape], str | None] = lambda _: None

    def reason(self, shape: Shape) -> str | None:
        """Why the shape is left out, None if it is not."""
        if shape.stage not in self.stages:
            return f"is for the {' and the '.join(self.stages)} stage"
        return self.why_not(shape)

    def bytes_needed(self, shape: Shape) -> int:
        if self.reason(shape):
            return 0
        recipe = recipe_of(shape.model)
        parameters, embeddings = Parameters.of(recipe), 4 * shape.texts * recipe.model.hidden_size
        states = STATE_BYTES * parameters.total + COPY_BYTES * parameters.matrices
        scores = 4 * self.squares(len(shape.dims)) * shape.batch_size * (shape.texts - shape.batch_size)
        return states + self.tokens_at_once(shape) * activation_bytes(shape) + scores + 4 * embeddings


def activation_bytes(shape: Shape) -> int:
    """About what a token leaves for the backward pass under autocast, by what each operation of a layer saves.

    Norms: input and normalised in float32, output in bfloat16, twice. Attention: q and k before and after the rotation
    and v, its result, the residual. MLP: gate, its activation, up and their product.
    """
    model = recipe_of(shape.model).model
    key_values = 2 * model.num_key_value_heads * model.hidden_size // model.num_attention_heads
    layer = 36 * model.hidden_size + 12 * key_values + 8 * model.intermediate_size
    return model.num_hidden_layers * layer + 12 * model.hidden_size


def of_micro_batch(shape: Shape, tokens: int) -> int:
    """Of a step's tokens those of a micro-batch, which holds a text that is longer than it should be all the same."""
    return max(int(lengths(shape).max()), min(tokens, shape.micro_batch_tokens))
