"""CoSENT (eq. 2): graded pairs, ranked by their cosine."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _autocast, _checks

LABEL_DTYPES = (*_checks.FLOAT_DTYPES, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def cosent(
    a: Tensor,
    b: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor = 0.05,
    dims: Sequence[int] | None = None,
    dim_weights: Sequence[float] | None = None,
) -> Tensor:
    """log(1 + sum over label_i > label_j of exp((cos_j - cos_i) / temperature)), summed over dims with weights (eq. 2).

    a, b: [N, D] bfloat16, float16, float32 or float64; pair i has cosine cos_i = cos(a_i, b_i), of the first d elements
        for each d of dims (distinct, in 1..D, default (D,); dim_weights default 1 each).
        Under autocast they may have different dtypes, of which the widest counts.
    labels: [N], integers or floats; equal labels form no pair, and with fewer than two distinct ones the loss is 0. NaN
        is neither above nor below any label: a row without a label can have it and forms no pair.
    temperature: positive finite float or 0-dim tensor. The loss is NaN for a tensor that is neither, where its value is
        not known on the host (on a GPU, under torch.compile).
    Returns a scalar, float32 (float64 for float64 inputs), with second derivatives.
    Forward-mode derivatives are those of torch's logcumsumexp: rough where scores differ by more than about 30.
    O(N log N) time and O(N D) memory. Raises ValueError / TypeError naming the argument.
    """
    _checks.tensor("a", a, "N, D")
    _checks.tensor("b", b, "N, D")
    a, b = _autocast.promoted(a, b)
    _checks.floating_alike(a=a, b=b)
    if a.shape != b.shape or a.shape[0] == 0 or a.shape[1] == 0:
        raise ValueError(f"a and b must have one shape with N, D >= 1, got {list(a.shape)} and {list(b.shape)}")
    _checks.tensor("labels", labels, "N")
    if labels.shape[0] != a.shape[0]:
        raise ValueError(f"labels must have one entry per row of a, {a.shape[0]}, got {labels.shape[0]}")
    if labels.dtype not in LABEL_DTYPES:
        raise TypeError(f"labels must be integers or floats, one of {LABEL_DTYPES}, got {labels.dtype}")
    if labels.device != a.device:
        raise ValueError(f"labels must be on {a.device}, got {labels.device}")
    _checks.temperature(temperature, a.device)
    if isinstance(temperature, Tensor):
        temperature = _checks.temperature_tensor(temperature)
    rising, weights, _ = _checks.matryoshka(dims, dim_weights, a.shape[1])

    with _autocast.suspended(a.device):
        order, smaller, has_label = _ranks(labels)
        loss: Tensor = a.new_zeros((), dtype=_checks.accumulation_dtype(a.dtype))
        for cosine, weight in zip(_prefix_cosines(a, b, rising), weights, strict=True):
            scores = cosine[order] / temperature
            if has_label is not None:
                scores = torch.where(has_label, scores, 0)
            loss = loss + weight * _ranking_loss(scores, smaller)
        return loss


def _ranks(labels: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """(rows in the order of their labels, NaN last; in this order how many labels are smaller, and which are not NaN).

    None are smaller than NaN. The last is None for integers.
    """
    labels, order = labels.sort()
    if not labels.is_floating_point():
        return order, torch.searchsorted(labels, labels), None
    has_label = labels == labels
    rising = labels.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
    return order, torch.where(has_label, torch.searchsorted(rising, rising), 0), has_label


def _prefix_cosines(a: Tensor, b: Tensor, dims: Sequence[int]) -> list[Tensor]:
    """The cosine [N] of each prefix of rising `dims`; 0, with zero gradient, where a vector is zero."""
    dtype = _checks.accumulation_dtype(a.dtype)
    a, b = a.to(dtype), b.to(dtype)
    dot, squared_a, squared_b = (torch.zeros(len(a), dtype=dtype, device=a.device) for _ in range(3))
    cosines, start = [], 0
    for dim in dims:
        part_a, part_b = a[:, start:dim], b[:, start:dim]
        dot = dot + (part_a * part_b).sum(1)
        squared_a, squared_b = squared_a + part_a.square().sum(1), squared_b + part_b.square().sum(1)
        defined = (squared_a != 0) & (squared_b != 0)
        norms = torch.where(defined, squared_a, 1).sqrt() * torch.where(defined, squared_b, 1).sqrt()
        cosines.append(torch.where(defined, dot / norms, 0))
        start = dim
    return cosines


def _ranking_loss(scores: Tensor, smaller: Tensor) -> Tensor:
    """log(1 + sum_i sum_{j < smaller_i} exp(scores_j - scores_i)) for scores in the order of their labels.

    A running logsumexp holds every inner sum, so no temperature overflows.
    """
    running = scores.logcumsumexp(0)
    terms = torch.where(smaller > 0, running[(smaller - 1).clamp(min=0)] - scores, -torch.inf)
    return torch.cat([terms.new_zeros(1), terms]).logsumexp(0)
