"""No barrier, wait or commit of the kernels can go without a test that fails."""

import subprocess
import sys

import pytest

from tests.support import emulated_module
from tests.support.paths import ROOT


@pytest.mark.slow
@pytest.mark.skipif(emulated_module.compiler_missing() is not None, reason=str(emulated_module.compiler_missing()))
def test_every_deletion_is_noticed():
    command = [sys.executable, "-m", "tests.emulation.mutate_kernels"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr
