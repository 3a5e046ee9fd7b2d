"""conan_fast.info_nce for all dims at once, and called for each dim. The backend that "auto" chooses is named."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.contrastive.cases import (
    TEMPERATURE,
    GradientStep,
    InfoNCEImplementation,
    Inputs,
    by_autograd,
    our_backend,
)
from benchmarks.suite import NotRun
from conan_fast import info_nce

TOLERANCE = 0.01


def _loss(inputs: Inputs, dims: Sequence[int]) -> Callable[..., Tensor]:
    backend, _ = our_backend(inputs, dims)
    return lambda *features: info_nce(*features, temperature=TEMPERATURE, dims=dims, backend=backend).loss


def ours(inputs: Inputs, dims: Sequence[int]) -> GradientStep:
    return by_autograd(inputs, _loss(inputs, dims))


def ours_once_per_dim(inputs: Inputs, dims: Sequence[int]) -> GradientStep:
    if len(dims) == 1:
        raise NotRun("with one dim it is the same as ours")
    losses = [_loss(inputs, [dim]) for dim in dims]
    return by_autograd(inputs, lambda *features: torch.stack([loss(*features) for loss in losses]).sum())


IMPLEMENTATIONS = tuple(
    InfoNCEImplementation(name, "ours", about, build, prefixes=prefixes, tolerance=TOLERANCE)
    for name, about, build, prefixes in (
        ("ours", "conan_fast.info_nce, all dims at once", ours, 0),
        ("ours_once_per_dim", "conan_fast.info_nce, called for each dim", ours_once_per_dim, 3),
    )
)
