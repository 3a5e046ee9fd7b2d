"""The small kernels that test the emulation."""

import pytest

from tests.emulation import build_small_kernels, small_kernels
from tests.support.compiler import compiler_missing, in_background


@pytest.fixture(scope="session")
def kernels() -> small_kernels.Kernels:
    if reason := compiler_missing():
        pytest.skip(reason)
    return small_kernels.Kernels(in_background(build_small_kernels.build, "tests").result())
