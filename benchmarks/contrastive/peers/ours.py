"""conan_fast.info_nce for all dims at once, and called for each dim. The backend that "auto" chooses is named."""

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.contrastive.cases import (
    TEMPERATURE,
    ContrastiveImplementation,
    GradientStep,
    Inputs,
    our_backend,
    with_autograd,
)
from benchmarks.suite import NotRun
from conan_fast import info_nce

TOLERANCE = 0.01


def ours(inputs: Inputs, dims: Sequence[int]) -> GradientStep:
    backend, _ = our_backend(inputs, dims)
    return with_autograd(inputs, lambda *x: info_nce(*x, temperature=TEMPERATURE, dims=dims, backend=backend).loss)


def ours_once_per_dim(inputs: Inputs, dims: Sequence[int]) -> GradientStep:
    if len(dims) == 1:
        raise NotRun("with one dim it is the same as ours")
    backend, _ = our_backend(inputs, dims)

    def loss(*features: Tensor) -> Tensor:
        losses = [info_nce(*features, temperature=TEMPERATURE, dims=[dim], backend=backend).loss for dim in dims]
        return torch.stack(losses).sum()

    return with_autograd(inputs, loss)


IMPLEMENTATIONS = (
    ContrastiveImplementation("ours", "ours", "conan_fast.info_nce, all dims at once", ours, tolerance=TOLERANCE),
    ContrastiveImplementation(
        "ours_once_per_dim",
        "ours",
        "conan_fast.info_nce, called for each dim",
        ours_once_per_dim,
        prefixes=3,
        tolerance=TOLERANCE,
    ),
)
