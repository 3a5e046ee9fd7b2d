"""A test fails if any barrier, wait, commit or fence of the kernels is deleted."""

import subprocess
import sys

import pytest

from tests.support.compiler import compiler_missing
from tests.support.paths import ROOT


@pytest.mark.proof
def test_every_deletion_is_noticed():
    if reason := compiler_missing():
        pytest.skip(reason)
    command = [sys.executable, "-m", "tests.emulation.mutate_kernels"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr
