"""Runs a small kernel at many seeds of the emulation's scheduler."""

from __future__ import annotations

import numpy as np
import pytest

from tests.emulation.small_kernels import KernelError

SEEDS = range(20)


def random_floats(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def outputs(kernels, name, x, shape, *numbers, **launch):
    """The `out` that kernel(x, out, numbers...) writes, for each seed."""
    for seed in SEEDS:
        kernels.set_seed(seed)
        out = np.full(shape, -1, x.dtype)
        kernels.launch(name, x, out, *numbers, **launch)
        yield out


def wrong_seeds(kernels, name, x, expected, *numbers, **launch):
    """The number of seeds at which the result is not `expected`."""
    results = outputs(kernels, name, x, expected.shape, *numbers, **launch)
    return sum(not np.array_equal(out, expected) for out in results)


def passes(kernels, name, *arguments, **launch):
    for seed in SEEDS:
        kernels.set_seed(seed)
        kernels.launch(name, *arguments, **launch)


def errors(kernels, name, *arguments, **launch):
    """The text of the KernelError, for each seed."""
    texts = []
    for seed in SEEDS:
        kernels.set_seed(seed)
        with pytest.raises(KernelError) as error:
            kernels.launch(name, *arguments, **launch)
        texts.append(str(error.value))
    return texts
