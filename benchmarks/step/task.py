"""What all implementations are given: a shape with its texts, the same weights, and the recipe of its stage."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from transformers import LlamaForCausalLM

from benchmarks.step.models import recipe_of
from benchmarks.step.shape import Shape
from benchmarks.step.texts import Texts
from train.loop import autocast
from train.model import build_model
from train.recipe import Recipe, Source, SupervisedRecipe, WeakRecipe

STEPS = 1003  # of the made-up run, whose middle is measured
STEP = 501  # no step in which the training loop reads the norm of the gradient or saves: 1 of 10 or 500 does
ALPHA = 0.5  # of the weak stage's linear schedule in this step
LEARNING_RATE = 1e-6  # all steps see the same texts: the weights shall stay about as they are
ABOVE_ALL_COSINES = 2.0
CHECKED_PAIRS = 4


@dataclass(frozen=True)
class Task:
    """micro_batch_tokens: of one forward pass, where an implementation has no other bound."""

    shape: Shape
    device: torch.device
    texts: Texts
    precision: str
    micro_batch_tokens: int

    @staticmethod
    def of(shape: Shape, device: torch.device, precision: str | None = None) -> Task:
        """precision: in place of the recipe's."""
        chosen = precision or recipe_of(shape.model).precision
        return Task(shape, device, Texts.of(shape), chosen, shape.micro_batch_tokens)

    def checked(self) -> Task:
        """With a few pairs; micro-batches are as many as of the whole, or nearly."""
        texts = self.texts.first(CHECKED_PAIRS)
        tokens = [len(sequence) for sequence in texts.sequences()]
        part = sum(tokens) * self.micro_batch_tokens // self.shape.tokens
        return replace(self, texts=texts, micro_batch_tokens=max(*tokens, min(part, self.micro_batch_tokens)))

    @property
    def recipe(self) -> Recipe:
        return recipe_of(self.shape.model)

    @property
    def alpha(self) -> float:
        return ALPHA if self.shape.stage == "weak" else 1.0

    @property
    def bfloat16(self) -> bool:
        return isinstance(autocast(self.device, self.precision), torch.autocast)

    def stage_recipe(self) -> WeakRecipe | SupervisedRecipe:
        """The recipe's, but for the data, the schedule, and that all negatives are replaced after their first step.

        The rest of a pool takes their place then, for good: all steps to come have the same work.
        """
        source = Source(path="random", batch_size=len(self.texts.rows), max_length=self.texts.max_length)
        made_up = {
            "sources": [source],
            "steps": STEPS,
            "learning_rate": LEARNING_RATE,
            "warmup": 0.0,
            "decay": "constant",
            "micro_batch_tokens": self.micro_batch_tokens,
        }
        if self.shape.stage == "weak":
            return self.recipe.weak.model_copy(update=made_up)
        return self.recipe.supervised.model_copy(update=made_up | {"replace_below": ABOVE_ALL_COSINES})

    def model(self) -> LlamaForCausalLM:
        """In float32, with the same weights in each call."""
        torch.manual_seed(0)
        with self.device:
            return build_model(self.recipe.model, self.recipe.tokenizer.vocab_size)
