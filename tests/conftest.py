"""The kernels compiled for the CPU."""

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from conan_fast import _backends
from tests.support import emulated_module

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def emulated() -> ModuleType:
    """conan_fast._emulated, built if need be; from then on backend="emulated" exists."""
    if emulated_module.NAME in sys.modules:
        return sys.modules[emulated_module.NAME]
    if built := os.environ.get("CONAN_FAST_EMULATED"):
        return emulated_module.load(Path(built))
    if reason := emulated_module.compiler_missing():
        pytest.skip(reason)
    return emulated_module.load(emulated_module.build("tests"))


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def kernel_backend(request: pytest.FixtureRequest) -> tuple[str, str]:
    """(backend, device) of the kernels: on the CPU emulation always, and on a GPU where kernels and GPU are there."""
    if request.param == "emulated":
        request.getfixturevalue("emulated")
        return "emulated", "cpu"
    if reason := _backends.missing_reason("cuda"):
        pytest.skip(reason)
    return "cuda", "cuda"
