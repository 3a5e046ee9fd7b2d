"""Random texts of given lengths. A word is a decimal number, and a token; all texts differ."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from train.data.rows import Pair
from train.recipe import Recipe
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
    def of(lengths: NDArray[np.int64], recipe: Recipe) -> "Texts":
        """lengths: tokens of each query, positive and hard negatives [pairs, 2 + num_negatives]."""
        rng, vocab_size = np.random.default_rng(0), recipe.tokenizer.vocab_size

        def text(tokens: int) -> str:
            """The end-of-text token is the last."""
            return " ".join(map(str, rng.integers(1, vocab_size, tokens - 1).tolist()))

        rows = []
        for query, positive, *negatives in lengths.tolist():
            pool = tuple(text(tokens) for tokens in (*negatives, *negatives))
            rows.append(Pair(text(query), text(positive), pool))
        return Texts(rows, _tokenizer(vocab_size), lengths.shape[1] - 2, recipe.model.max_position_embeddings)

    def columns(self) -> dict[str, list[str]]:
        """Queries, positives, and each pair's first negative, second negative and so on, by name."""
        rows = [(row.query, row.positive, *row.negatives[: self.num_negatives]) for row in self.rows]
        names = ["query", "positive", *(f"negative_{number + 1}" for number in range(self.num_negatives))]
        return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}

    def sequences(self, order: Sequence[int] | NDArray[np.int64] | None = None) -> list[list[int]]:
        """Tokens of all queries, all positives, and the negatives in use of the first pair, of the second and so on."""
        rows = self.rows if order is None else [self.rows[i] for i in order]
        texts = [row.query for row in rows] + [row.positive for row in rows]
        texts += [text for row in rows for text in row.negatives[: self.num_negatives]]
        return token_ids(self.tokenizer, texts, self.max_length)


def _tokenizer(vocab_size: int) -> Tokenizer:
    """Like train.tokenizer's: without special tokens what `token_ids` expects, with them ending in END_OF_TEXT."""
    words = {str(word): word for word in range(vocab_size) if word != END_ID}
    tokenizer = Tokenizer(models.WordLevel({END_OF_TEXT: END_ID, **words}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special, text = [(END_OF_TEXT, END_ID)], f"$A {END_OF_TEXT}"
    tokenizer.post_processor = processors.TemplateProcessing(single=text, special_tokens=special)
    return tokenizer
