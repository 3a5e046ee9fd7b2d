"""Training steps on random texts, through the training program's own stages, loop and optimiser, with a stopwatch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaForCausalLM

from benchmarks import timing
from train.data.rows import Pair, Scored
from train.embedding_loss import Embedding, backward_through_embeddings
from train.loop import Stage, make_optimizer, train_step
from train.model import build_model
from train.pairs import PairTable
from train.recipe import ModelRecipe, Recipe, Source, SupervisedRecipe, TokenizerRecipe, load_recipe
from train.stages import supervised, weak

WARM_UP = 2
SCHEDULE = 1000  # steps of the made-up training run; the measured ones are in its middle
SMALL = Recipe(
    name="small",
    tokenizer=TokenizerRecipe(vocab_size=32_768),
    model=ModelRecipe(
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=12,
        num_attention_heads=16,
        num_key_value_heads=4,
    ),
    supervised=SupervisedRecipe(dims=[128, 256, 384, 512, 640, 896, 1024]),
)


def recipe_of(name: str) -> Recipe:
    return SMALL if name == "small" else load_recipe(name)


@dataclass(frozen=True)
class Shape:
    batch_size: int
    text_tokens: int
    micro_batch_tokens: int


@dataclass(frozen=True)
class Measured:
    """seconds: of each step, of its "loss" and "optimiser", and of the rest, which is mostly "embedding" the texts
    forward and backward, but also tokenising them and clipping gradients. peak_bytes: of everything, the model and the
    optimiser's state too; None on a CPU."""

    tokens: int
    dims: list[int]
    seconds: dict[str, list[float]]
    peak_bytes: int | None


class Texts:
    """Random texts of a number of words that are tokens, and their tokenizer."""

    def __init__(self, vocab_size: int) -> None:
        self._words = vocab_size
        self.tokenizer = Tokenizer(models.WordLevel({str(word): word for word in range(vocab_size)}))
        self.tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()

    def draw(self, tokens: int) -> Iterator[str]:
        """Endless, the same ones in each call; each is `tokens` with the end-of-text token."""
        rng = random.Random(0)
        while True:
            yield " ".join(str(rng.randrange(1, self._words)) for _ in range(tokens - 1))


class Trainer:
    """A model and its optimiser, and the stages that train it."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        torch.manual_seed(0)
        with device:
            self.model = build_model(recipe.model, recipe.tokenizer.vocab_size)
        self.parameters = self.model.num_parameters()
        self._texts = Texts(recipe.tokenizer.vocab_size)

    def run(self, stage_name: str, shape: Shape, steps: int) -> Measured:
        stage = STAGES[stage_name](self, shape)
        optimizer = make_optimizer(self.model, stage.recipe)
        spans: dict[str, list[timing.Span]] = {"step": [], "loss": [], "optimiser": []}
        tokens = 0

        def one_step() -> None:
            nonlocal tokens
            with self._span(spans["step"]):
                _, tokens = train_step(stage, self.model, optimizer, SCHEDULE // 2 + len(spans["step"]))

        def all_steps() -> None:
            for _ in range(steps):
                one_step()

        optimizer.register_step_pre_hook(lambda *_: self._span(spans["optimiser"]).begin())
        optimizer.register_step_post_hook(lambda *_: spans["optimiser"][-1].end())
        with loss_between(lambda: self._span(spans["loss"])):
            for _ in range(WARM_UP):
                one_step()
            peak = timing.peak_bytes(all_steps, self.device)
        self.model.zero_grad(set_to_none=True)
        seconds = {name: [span.seconds() for span in some[WARM_UP:]] for name, some in spans.items()}
        parts = zip(seconds["step"], seconds["loss"], seconds["optimiser"], strict=True)
        seconds["embedding"] = [whole - loss - optimiser for whole, loss, optimiser in parts]
        return Measured(tokens, stage.recipe.dims or [self.recipe.model.hidden_size], seconds, peak)

    def _span(self, spans: list[timing.Span]) -> timing.Span:
        spans.append(timing.Span(self.device))
        return spans[-1]

    def weak(self, shape: Shape) -> weak.Weak:
        texts = self._texts.draw(shape.text_tokens)
        rows = [Pair(next(texts), next(texts)) for _ in range(shape.batch_size)]
        recipe = self.recipe.weak.model_copy(update=_made_up(shape))
        return weak.Weak(recipe, [PairTable.of(rows)], **self._common())

    def supervised(self, shape: Shape) -> supervised.Supervised:
        """With pools twice as large as what is in use, so that easy negatives can be replaced."""
        recipe, texts = self.recipe.supervised.model_copy(update=_made_up(shape)), self._texts.draw(shape.text_tokens)
        pool = 2 * recipe.num_negatives
        rows = [Pair(next(texts), next(texts), tuple(islice(texts, pool))) for _ in range(shape.batch_size)]
        table = PairTable.of(rows)
        return supervised.Supervised(recipe, [(table, np.stack(table.negatives))], **self._common())

    def scored(self, shape: Shape) -> supervised.Supervised:
        texts = self._texts.draw(shape.text_tokens)
        rows = [Scored(next(texts), next(texts), float(number)) for number in range(shape.batch_size)]
        recipe = self.recipe.supervised.model_copy(update=_made_up(shape))
        return supervised.Supervised(recipe, [rows], **self._common())

    def _common(self) -> dict[str, Any]:
        return {
            "tokenizer": self._texts.tokenizer,
            "seed": 0,
            "device": self.device,
            "precision": self.recipe.precision,
        }


STAGES: dict[str, Callable[[Trainer, Shape], Stage[Any]]] = {
    "weak": Trainer.weak,
    "supervised": Trainer.supervised,
    "supervised_scored": Trainer.scored,
}


def _made_up(shape: Shape) -> dict[str, Any]:
    """What the recipe of a stage has instead of its own data and schedule."""
    source = Source(path="random", batch_size=shape.batch_size, max_length=shape.text_tokens)
    return {"sources": [source], "steps": SCHEDULE, "micro_batch_tokens": shape.micro_batch_tokens}


class _Known(torch.autograd.Function):
    """A loss whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, loss: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grads[0], None, None


@contextmanager
def loss_between(span: Callable[[], timing.Span]) -> Iterator[None]:
    """The stages' losses run forward and backward within a span each; the gradients are the same."""

    def timed(
        model: LlamaForCausalLM,
        sequences: Sequence[Sequence[int]],
        embedding: Embedding,
        loss_of: Callable[[Tensor], Tensor],
    ) -> Tensor:
        def both_ways(embeddings: Tensor) -> Tensor:
            leaf = embeddings.detach().requires_grad_()
            with span():
                loss = loss_of(leaf)
                loss.backward()
            return _Known.apply(embeddings, loss.detach(), leaf.grad)

        return backward_through_embeddings(model, sequences, embedding, both_ways)

    name = backward_through_embeddings.__name__
    with patch.object(weak, name, timed), patch.object(supervised, name, timed):
        yield
