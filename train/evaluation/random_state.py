"""Preserve the global random number generators while mteb runs."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """On exit, restore the states of `random`, `numpy.random` and torch (CPU, and CUDA if initialized).

    mteb seeds all of them on import, per task and per evaluator. An evaluation between two training steps would
    otherwise change the steps that follow.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
