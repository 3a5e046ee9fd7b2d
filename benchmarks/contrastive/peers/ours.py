"""conan_fast.info_nce for all dims at once, and called for each dim."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.contrastive.implementation import (
    TEMPERATURE,
    ContrastiveImplementation,
    Inputs,
    Work,
    with_autograd,
)
from benchmarks.peer import NotRun
from conan_fast import info_nce

TOLERANCE = 0.01


def backend_of(inputs: Inputs, dims: Sequence[int]) -> tuple[str, str | None]:
    """("cuda", None), or ("torch", why not the kernels); found out by a call with two rows of the inputs."""
    if inputs[0].device.type == "cpu":
        return "torch", None
    try:
        info_nce(*(x.detach()[:2] for x in inputs), temperature=TEMPERATURE, dims=dims, backend="cuda")
    except (RuntimeError, TypeError, ValueError) as error:
        return "torch", str(error)
    return "cuda", None


def ours(inputs: Inputs, dims: Sequence[int]) -> Work:
    """With the backend that "auto" takes, named: nothing falls back unseen."""
    backend, _ = backend_of(inputs, dims)
    return with_autograd(inputs, lambda *x: info_nce(*x, temperature=TEMPERATURE, dims=dims, backend=backend).loss)


def ours_once_per_dim(inputs: Inputs, dims: Sequence[int]) -> Work:
    if len(dims) == 1:
        raise NotRun("with one dim it is the same as ours")
    backend, _ = backend_of(inputs, dims)

    def loss(*features: Tensor) -> Tensor:
        losses = [info_nce(*features, temperature=TEMPERATURE, dims=[dim], backend=backend).loss for dim in dims]
        return torch.stack(losses).sum()

    return with_autograd(inputs, loss)


IMPLEMENTATIONS = (
    ContrastiveImplementation(
        name="ours", role="ours", about="conan_fast.info_nce, all dims at once", build=ours, tolerance=TOLERANCE
    ),
    ContrastiveImplementation(
        name="ours_once_per_dim",
        role="ours",
        about="conan_fast.info_nce, called for each dim",
        build=ours_once_per_dim,
        prefixes=3,
        tolerance=TOLERANCE,
    ),
)
