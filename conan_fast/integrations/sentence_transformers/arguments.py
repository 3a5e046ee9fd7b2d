"""Arguments of the losses: what is refused, and the Matryoshka dims."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from .stock import MatryoshkaLoss


def refuse_unsupported(loss: Any, stock: type[nn.Module], cosines: Sequence[Callable[..., Any]]) -> None:
    """Raises ValueError for a value of `loss` that our operators cannot honour; `stock` is the class that it extends.

    An argument that a later version of `stock` adds is refused as well, unless it has its default.
    """
    name, instead = type(loss).__name__, f"use sentence-transformers' {stock.__name__} for it"
    if not 0 < loss.scale < math.inf:
        raise ValueError(f"scale must be positive and finite, got {loss.scale}")
    if loss.similarity_fct not in cosines:
        got = getattr(loss.similarity_fct, "__name__", loss.similarity_fct)
        raise ValueError(f"{name} does not support similarity_fct={got}, expected {cosines[0].__name__}; {instead}")
    for parameter in inspect.signature(stock).parameters.values():
        if parameter.name in _SUPPORTED:
            continue
        value = getattr(loss, parameter.name)
        if value != parameter.default:
            got = f"{parameter.name}={value!r}"
            raise ValueError(f"{name} does not support {got}, expected {parameter.default!r}; {instead}")


# partition_mode: both modes are the same for the one direction that is supported.
_SUPPORTED = {
    "model",
    "scale",
    "similarity_fct",
    "gather_across_devices",
    "mini_batch_size",
    "mini_batch_num_tokens",
    "show_progress_bar",
    "partition_mode",
}


def matryoshka(
    model: Any, dims: Sequence[int] | None, weights: Sequence[float] | None
) -> tuple[list[int] | None, list[float] | None]:
    """(dims in falling order, their weights), checked as by MatryoshkaLoss; (None, None) for the full dim alone.

    Raises ValueError for dims outside 1..the model's embedding dimension, repeated dims, or another number of weights.
    """
    if dims is None:
        if weights is not None:
            raise ValueError(f"matryoshka_weights need matryoshka_dims, got {list(weights)} and None")
        return None, None
    if len(set(dims)) != len(dims):
        raise ValueError(f"matryoshka_dims must not repeat, got {list(dims)}")
    checked = MatryoshkaLoss(model, nn.Module(), dims, weights)
    return list(checked.matryoshka_dims), [float(weight) for weight in checked.matryoshka_weights]


def matryoshka_citation(dims: Sequence[int] | None) -> str:
    """That of MatryoshkaLoss where there are dims."""
    stock: Any = MatryoshkaLoss
    return "" if dims is None else str(stock.citation.fget(None))  # a property that uses no attribute
