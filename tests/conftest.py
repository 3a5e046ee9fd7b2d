"""The kernels compiled for the CPU, for all tests, and the order in which tests run."""

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.emulation import build_small_kernels
from tests.support import emulated_module
from tests.support.compiler import compiler_missing, in_background

# One core for each worker of pytest-xdist and for the processes that its tests start. torch reads it at its import.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")


def needs_kernels(item: pytest.Item) -> bool:
    return not {"emulated", "kernel_backend", "kernels"}.isdisjoint(item.fixturenames)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need no compiled kernels come first: meanwhile the kernels are compiled."""
    items.sort(key=needs_kernels)


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.option.collectonly or compiler_missing() or not any(map(needs_kernels, session.items)):
        return
    in_background(emulated_module.build, "tests")
    in_background(build_small_kernels.build, "tests")


@pytest.fixture(scope="session")
def emulated() -> ModuleType:
    """conan_fast._emulated, compiled if necessary: from then on backend="emulated" works."""
    if emulated_module.NAME in sys.modules:
        return sys.modules[emulated_module.NAME]
    if built := os.environ.get("CONAN_FAST_EMULATED"):
        return emulated_module.load(Path(built))
    if reason := compiler_missing():
        pytest.skip(reason)
    return emulated_module.load(in_background(emulated_module.build, "tests").result())


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def kernel_backend(request: pytest.FixtureRequest) -> tuple[str, str]:
    """(backend, device) of the kernels: the emulation on the CPU, and a GPU if this machine has one and the kernels."""
    if request.param == "emulated":
        request.getfixturevalue("emulated")
        return "emulated", "cpu"
    from conan_fast import _backends  # imports torch, which the main process of pytest-xdist can do without

    if reason := _backends.missing_reason("cuda"):
        pytest.skip(reason)
    return "cuda", "cuda"
