"""Random texts of a shape's lengths. A word is a number, and a token; no text comes twice."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from benchmarks.step.models import recipe_of
from benchmarks.step.shape import Shape, lengths
from train.data.rows import Pair
from train.tokenizer import END_ID, END_OF_TEXT, token_ids


@dataclass(frozen=True)
class Texts:
    """Pairs, in the supervised stage with pools of hard negatives twice as large as what is in use.

    The second half of a pool has the lengths of the first, so that a replaced negative leaves the work as it is.
    """

    rows: list[Pair]
    tokenizer: Tokenizer
    num_negatives: int
    max_length: int

    @staticmethod
    def of(shape: Shape) -> Texts:
        recipe = recipe_of(shape.model)
        rng = np.random.default_rng(0)

        def text(tokens: int) -> str:
            """The end-of-text token is the last."""
            return " ".join(map(str, rng.integers(1, recipe.tokenizer.vocab_size, tokens - 1).tolist()))

        rows = []
        for query, positive, *negatives in lengths(shape).tolist():
            pool = tuple(text(tokens) for tokens in (*negatives, *negatives))
            rows.append(Pair(text(query), text(positive), pool))
        longest = recipe.model.max_position_embeddings
        return Texts(rows, _tokenizer(recipe.tokenizer.vocab_size), shape.num_negatives, longest)

    def first(self, pairs: int) -> Texts:
        return Texts(self.rows[:pairs], self.tokenizer, self.num_negatives, self.max_length)

    def columns(self) -> dict[str, list[str]]:
        """Queries, positives, and each pair's first negative, second negative and so on, by name."""
        negatives = zip(*(row.negatives[: self.num_negatives] for row in self.rows), strict=True)
        return {
            "query": [row.query for row in self.rows],
            "positive": [row.positive for row in self.rows],
            **{f"negative_{number}": list(column) for number, column in zip(count(1), negatives, strict=False)},
        }

    def sequences(self, order: np.ndarray | None = None) -> list[list[int]]:
        """Tokens of all queries, all positives, and the negatives in use of the first pair, of the second and so on."""
        rows = self.rows if order is None else [self.rows[i] for i in order]
        texts = [row.query for row in rows] + [row.positive for row in rows]
        texts += [text for row in rows for text in row.negatives[: self.num_negatives]]
        return token_ids(self.tokenizer, texts, self.max_length)


def _tokenizer(vocab_size: int) -> Tokenizer:
    """Like train.tokenizer's: without special tokens what `token_ids` takes, with them ending in END_OF_TEXT."""
    words = {str(word): word for word in range(vocab_size) if word != END_ID}
    tokenizer = Tokenizer(models.WordLevel({END_OF_TEXT: END_ID, **words}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END_OF_TEXT}", special_tokens=[(END_OF_TEXT, END_ID)]
    )
    return tokenizer
