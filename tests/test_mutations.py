"""No barrier, wait or commit of the kernels can go without a test that fails."""

import subprocess
import sys
from pathlib import Path

import emulation
import pytest


@pytest.mark.slow
@pytest.mark.skipif(emulation.compiler_missing() is not None, reason=str(emulation.compiler_missing()))
def test_every_deletion_is_noticed():
    script = Path(__file__).with_name("mutate_kernels.py")
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr
