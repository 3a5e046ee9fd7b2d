"""What is measured: one optimiser step of an embedding stage, a model, a number of pairs and of tokens."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.floors import Work
from benchmarks.labels import MICRO_BATCH_TOKENS
from benchmarks.step import flops
from benchmarks.step.models import recipe_of

SIGMA = 0.6  # of the logarithm of a text's length; made up, for no corpus is like another
LEAST_TOKENS = 4  # of a text
# MICRO_BATCH_TOKENS: of one forward pass; a larger batch goes through gradient caching.

Stage = Literal["weak", "supervised"]


@dataclass(frozen=True)
class Shape:
    """batch_size: pairs, each with the recipe's hard negatives in the supervised stage. tokens: of all texts of a step.

    Raises:
        ValueError: where a text would have fewer than LEAST_TOKENS.
    """

    stage: Stage
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

    def work(self, part: str) -> Work:
        """Of the one part, "step"."""
        return flops.step_work(recipe_of(self.model), lengths(self), max(self.dims))


@lru_cache
def lengths(shape: Shape) -> NDArray[np.int64]:
    """Tokens of each query, positive and hard negatives [batch_size, 2 + num_negatives]; the same in each call.

    Log-normal with a mean of about tokens / texts, at least LEAST_TOKENS, at most what the model takes; all together
    are no more than `tokens`, so that a batch meant to fit into a micro-batch does.
    """
    rng = np.random.default_rng(zlib.crc32(repr(shape).encode()))
    drawn = rng.lognormal(sigma=SIGMA, size=shape.texts)
    longest = recipe_of(shape.model).model.max_position_embeddings
    whole = np.clip(np.floor(drawn * (shape.tokens / drawn.sum())), LEAST_TOKENS, longest).astype(np.int64)
    while (excess := whole.sum() - shape.tokens) > 0:  # what the shortest texts got by LEAST_TOKENS, from the longest
        longest_first = np.argsort(-whole, kind="stable")[: min(excess, (whole > LEAST_TOKENS).sum())]
        whole[longest_first] -= 1
    return whole.reshape(shape.batch_size, -1)


def shapes(device_type: str) -> list[Shape]:
    """The paper's model and batch first."""
    if device_type == "cpu":
        return [
            Shape("weak", "tiny", 16, 1024),
            Shape("supervised", "tiny", 8, 1152),
            Shape("weak", "tiny", 16, 256, micro_batch_tokens=64),  # gradient caching
            Shape("weak", "tiny", 8, 256),
            Shape("supervised", "tiny", 4, 288),
        ]
    return [
        Shape("weak", "conan-1.4b", 64, 16_384),
        Shape("supervised", "conan-1.4b", 64, 16_384),
        Shape("weak", "small", 4096, 65_536),
        Shape("supervised", "small", 512, 65_536),
        Shape("weak", "conan-1.4b", 512, 32_768),
        Shape("weak", "medium", 256, 16_384),
        Shape("supervised", "medium", 128, 32_768),
        Shape("weak", "small", 256, 16_384),
        Shape("supervised", "small", 64, 16_384),
        Shape("weak", "conan-1.4b", 64, 4096),
        Shape("weak", "small", 64, 65_536),  # long texts: 512 tokens in the mean
        Shape("weak", "small", 64, 4096),
        Shape("weak", "tiny", 64, 4096),
    ]
