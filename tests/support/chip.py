"""The GPU that the emulation stands for."""

from collections.abc import Iterator
from contextlib import contextmanager

from conan_fast import _native

SHARED_MEMORY = {"Hopper": 227 * 1024, "8.0": 163 * 1024, "8.6": 99 * 1024}  # bytes that a block can have


@contextmanager
def chip(backend: str, name: str, seed: int = 0) -> Iterator[None]:
    """Sets the emulated chip's shared memory and the seed of its scheduler. Does nothing for other backends."""
    if backend != "emulated":
        yield
        return
    module = _native.module("emulated")
    module.set_shared_memory_limit(SHARED_MEMORY[name])
    module.set_seed(seed)
    try:
        yield
    finally:
        module.set_shared_memory_limit(SHARED_MEMORY["Hopper"])
        module.set_seed(0)
