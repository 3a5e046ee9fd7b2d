"""The models whose step is measured, by name: the recipes beside this file and in train/recipes; and their work."""

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.roofline import FLOP_OF_ATTENTION, Work, info_nce_work
from train.recipe import Recipe, load_recipe

# float32 elements that a step moves for each parameter, at least. A matrix is read forward; read backward, where its
# gradient is written; AdamW reads it, its gradient and two moments, and writes all but the gradient. The gradient must
# exist before AdamW begins, for it is scaled by the norm of all gradients. A row of the embeddings that no text
# contains has a gradient of 0 that need not exist; its weight and moments change all the same.
MOVED = {"matrix": 10, "embedding": 6}


_RECIPES = {path.stem: load_recipe(str(path)) for path in (Path(__file__).parent / "recipes").glob("*.toml")}


@lru_cache
def recipe_of(name: str) -> Recipe:
    """Raises train.recipe.RecipeError for a name that is neither here nor in train/recipes."""
    return _RECIPES.get(name) or load_recipe(name)


class Parameters:
    """How many the embedding stages train: no LM head, unless it is tied to the embeddings."""

    def __init__(self, recipe: Recipe) -> None:
        model = recipe.model
        head_dim = model.hidden_size // model.num_attention_heads
        heads = 2 * model.num_attention_heads + 2 * model.num_key_value_heads  # q, out; k, v
        layer = model.hidden_size * (heads * head_dim + 3 * model.intermediate_size)
        self.matrices = model.num_hidden_layers * layer
        self.embeddings = recipe.tokenizer.vocab_size * model.hidden_size
        self.gains = (2 * model.num_hidden_layers + 1) * model.hidden_size
        self.total = self.matrices + self.embeddings + self.gains


def step_work(recipe: Recipe, lengths: NDArray[np.int64], largest_dim: int) -> Work:
    """Useful work of a step: without padding, recomputation or the LM head.

    lengths: tokens of each text [pairs, texts of a pair]. bytes: of parameters and their moments only. A GEMM of T
    tokens with a matrix costs 2 FLOP forward and 4 backward for each token and element. Attention is the full square of
    each text, as under a soft mask with alpha > 0. The loss counts once, for the largest dim: the scores of a smaller
    one are partial sums of it.
    """
    model, parameters = recipe.model, Parameters(recipe)
    squares = float(np.square(lengths.astype(np.float64)).sum())
    attention = sum(FLOP_OF_ATTENTION.values()) * model.hidden_size * squares * model.num_hidden_layers  # H D = hidden
    pairs, texts_of_pair = lengths.shape
    loss = info_nce_work(pairs=pairs, candidates=pairs * (texts_of_pair - 1), dim=largest_dim)
    moved = MOVED["matrix"] * (parameters.matrices + parameters.gains) + MOVED["embedding"] * parameters.embeddings
    return Work(flop=6 * parameters.matrices * float(lengths.sum()) + attention + loss.flop, bytes=4 * moved)
