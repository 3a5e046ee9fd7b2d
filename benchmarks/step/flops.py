"""The useful work of a training step: what its definition asks for, without padding, recomputation or the LM head."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.floors import FLOP_OF_ATTENTION, Work, info_nce_work
from benchmarks.step.models import Parameters
from train.recipe import Recipe

# float32 numbers that a step moves for each parameter, at least. A matrix is read forward; read backward, where its
# gradient is written; AdamW reads it, its gradient and two moments, and writes all but the gradient. The gradient must
# be there before AdamW begins, for it is scaled by the norm of all gradients. A row of the embeddings that no text has
# in it has a gradient of 0 that need not exist; its weight and moments change all the same.
MOVED = {"matrix": 10, "embedding": 6}


def step_work(recipe: Recipe, lengths: NDArray[np.int64], largest_dim: int) -> Work:
    """Of texts of the given numbers of tokens [pairs, texts of a pair]; bytes: of parameters and their moments alone.

    A product of T tokens with a matrix costs 2 FLOP forward, 4 backward for each token and number. Attention is the
    full square of each text, as under a soft mask with alpha > 0. The loss counts once, for the largest dim: the scores
    of a smaller one are partial sums of it.
    """
    model, parameters = recipe.model, Parameters.of(recipe)
    squares = float(np.square(lengths.astype(np.float64)).sum())
    attention = sum(FLOP_OF_ATTENTION.values()) * model.hidden_size * squares * model.num_hidden_layers  # H D = hidden
    pairs, texts_of_pair = lengths.shape
    loss = info_nce_work(pairs=pairs, candidates=pairs * (texts_of_pair - 1), dim=largest_dim)
    moved = MOVED["matrix"] * (parameters.matrices + parameters.gains) + MOVED["embedding"] * parameters.embeddings
    return Work(flop=6 * parameters.matrices * float(lengths.sum()) + attention + loss.flop, bytes=4 * moved)
