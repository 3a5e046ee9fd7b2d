"""The kernels compiled for the CPU, for all tests, and the order in which tests run."""

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.emulation import build_small_kernels
from tests.support import emulated_module
from tests.support.compiler import compiler_missing, in_background

# Workers of pytest-xdist, and the processes that tests start, use one core each. torch reads this at its import.
os.environ.setdefault("OMP_NUM_THREADS", "1")

NEEDS_EMULATED_MODULE = {"emulated", "kernel_backend"}
NEEDS_SMALL_KERNELS = {"kernels"}
NEEDS_RUN = {"small_run"}  # of the demo, which takes some time
ONE_WORKER_PER_FILE = {"tests/build/test_wheel.py"}  # whose tests share a wheel


def uses(item: pytest.Item, fixtures: set[str]) -> bool:
    return not fixtures.isdisjoint(getattr(item, "fixturenames", ()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long to prepare is prepared while tests run that do not need it.

    One test makes the demo's run at once. Other tests of that run, and then tests of compiled kernels, come last.
    """
    items.sort(key=lambda item: (uses(item, NEEDS_EMULATED_MODULE | NEEDS_SMALL_KERNELS), uses(item, NEEDS_RUN)))
    if first := next((item for item in items if uses(item, NEEDS_RUN)), None):
        items.remove(first)
        items.insert(0, first)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Starts to compile the kernels that the tests need."""
    if session.config.option.collectonly or compiler_missing():
        return
    if "CONAN_FAST_EMULATED" not in os.environ and any(uses(item, NEEDS_EMULATED_MODULE) for item in session.items):
        in_background(emulated_module.build, "tests")
    if any(uses(item, NEEDS_SMALL_KERNELS) for item in session.items):
        in_background(build_small_kernels.build, "tests")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A free worker gets the next test, or all tests of a file in ONE_WORKER_PER_FILE.

    xdist_group would do this, but pytest-xdist 3.8 ignores it under pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:  # tests of one scope go to one worker
            file = nodeid.partition("::")[0]
            return file if file in ONE_WORKER_PER_FILE else nodeid

    return Scheduling(config, log) if config.getoption("dist") == "loadscope" else None


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
    from conan_fast import _backends  # imports torch, which the main process of pytest-xdist does not need

    if reason := _backends.missing_reason("cuda"):
        pytest.skip(reason)
    return "cuda", "cuda"
