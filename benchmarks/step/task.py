"""What all implementations of a step are given: a case with its texts, the same weights, the recipe of its stage."""

import zlib
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaForCausalLM

from benchmarks.result import MICRO_BATCH_TOKENS
from benchmarks.roofline import Work
from benchmarks.step.models import recipe_of, step_work
from benchmarks.step.texts import Texts
from train.loop import autocast
from train.model import build_model
from train.recipe import Recipe, Source, SupervisedRecipe, WeakRecipe

SIGMA = 0.6  # of the logarithm of a text's length; an assumption, for corpora differ
LEAST_TOKENS = 4  # of a text
STEPS = 1003  # of an assumed run, whose middle is measured
STEP = 501  # a step in which the training loop neither reads the norm of the gradient nor saves
ALPHA = 0.5  # of the weak stage's linear schedule in this step
LEARNING_RATE = 1e-6  # small, as all steps see the same texts: the weights stay about as they are
ABOVE_ALL_COSINES = 2.0
CHECKED_PAIRS = 4

StageName = Literal["weak", "supervised"]


@dataclass(frozen=True)
class Case:
    """One optimiser step of an embedding stage.

    batch_size: pairs, each with the recipe's hard negatives in the supervised stage. tokens: of all texts of a step.
    micro_batch_tokens: of one forward pass; a larger batch uses gradient caching.

    Raises:
        ValueError: if a text would have fewer than LEAST_TOKENS.
    """

    stage: StageName
    model: str
    batch_size: int
    tokens: int
    micro_batch_tokens: int = MICRO_BATCH_TOKENS

    def __post_init__(self) -> None:
        if self.tokens < LEAST_TOKENS * self.texts:
            raise ValueError(f"tokens: at least {LEAST_TOKENS} for each of {self.texts} texts, got {self.tokens}")

    @property
    def num_negatives(self) -> int:
        return recipe_of(self.model).supervised.num_negatives if self.stage == "supervised" else 0

    @property
    def texts(self) -> int:
        return self.batch_size * (2 + self.num_negatives)

    @property
    def dims(self) -> list[int]:
        recipe = recipe_of(self.model)
        return {"weak": recipe.weak, "supervised": recipe.supervised}[self.stage].dims or [recipe.model.hidden_size]

    def work(self, _: str) -> Work:
        return step_work(recipe_of(self.model), lengths(self), max(self.dims))


@lru_cache
def lengths(case: Case) -> NDArray[np.int64]:
    """Tokens of each query, positive and hard negatives [batch_size, 2 + num_negatives]; the same in each call.

    Log-normal with a mean of about tokens / texts, at least LEAST_TOKENS, at most what the model supports; all together
    no more than `tokens`, so that a batch meant to fit into a micro-batch does.
    """
    seed = repr(case).replace("Case(", "Shape(")  # the class's first name: published results keep their lengths
    rng = np.random.default_rng(zlib.crc32(seed.encode()))
    random = rng.lognormal(sigma=SIGMA, size=case.texts)
    longest = recipe_of(case.model).model.max_position_embeddings
    whole = np.clip(np.floor(random * (case.tokens / random.sum())), LEAST_TOKENS, longest).astype(np.int64)
    while (excess := whole.sum() - case.tokens) > 0:  # what the shortest texts got by LEAST_TOKENS, from the longest
        longest_first = np.argsort(-whole, kind="stable")[: min(excess, (whole > LEAST_TOKENS).sum())]
        whole[longest_first] -= 1
    return whole.reshape(case.batch_size, -1)


@dataclass(frozen=True)
class Task:
    """micro_batch_tokens: of one forward pass, unless an implementation has another bound."""

    case: Case
    device: torch.device
    texts: Texts
    precision: str
    micro_batch_tokens: int

    @staticmethod
    def of(case: Case, device: torch.device, precision: str | None = None) -> "Task":
        """precision: in place of the recipe's."""
        recipe = recipe_of(case.model)
        texts = Texts.of(lengths(case), recipe)
        return Task(case, device, texts, precision or recipe.precision, case.micro_batch_tokens)

    def checked(self) -> "Task":
        """The task with a few pairs, in as many micro-batches as the whole, or nearly."""
        texts = replace(self.texts, rows=self.texts.rows[:CHECKED_PAIRS])
        tokens = [len(sequence) for sequence in texts.sequences()]
        part = sum(tokens) * self.micro_batch_tokens // self.case.tokens
        return replace(self, texts=texts, micro_batch_tokens=max(*tokens, min(part, self.micro_batch_tokens)))

    @property
    def recipe(self) -> Recipe:
        return recipe_of(self.case.model)

    @property
    def alpha(self) -> float:
        return ALPHA if self.case.stage == "weak" else 1.0

    @property
    def dtype(self) -> torch.dtype:
        autocasts = isinstance(autocast(self.device, self.precision), torch.autocast)
        return torch.bfloat16 if autocasts else torch.float32

    def stage_recipe(self) -> WeakRecipe | SupervisedRecipe:
        """The recipe's, except for data and schedule, and that all negatives are replaced after their first step.

        The rest of a pool takes their place, for good: all later steps have the same work.
        """
        source = Source(path="random", batch_size=len(self.texts.rows), max_length=self.texts.max_length)
        schedule = {"steps": STEPS, "learning_rate": LEARNING_RATE, "warmup": 0.0, "decay": "constant"}
        changed = {"sources": [source], "micro_batch_tokens": self.micro_batch_tokens, **schedule}
        if self.case.stage == "weak":
            return self.recipe.weak.model_copy(update=changed)
        return self.recipe.supervised.model_copy(update=changed | {"replace_below": ABOVE_ALL_COSINES})

    def model(self) -> LlamaForCausalLM:
        """In float32, with the same weights in each call."""
        torch.manual_seed(0)
        with self.device:
            return build_model(self.recipe.model, self.recipe.tokenizer.vocab_size)
