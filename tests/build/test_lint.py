"""Style, formatting and types with the committed configuration: `pytest -n0 tests/build/test_lint.py`."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support.paths import ROOT


@pytest.mark.parametrize("command", ["ruff check", "ruff format --check", "mypy"])
def test_no_complaints(command: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_complaints_about_c_plus_plus() -> None:
    clang_format = (
        Path(sysconfig.get_path("scripts")) / "clang-format"
    )  # that of the venv: other releases format differently
    files = [path for folder in ("csrc", "tests") for path in sorted((ROOT / folder).rglob("*.*"))]
    sources = [str(path) for path in files if path.suffix in (".h", ".cuh", ".cpp", ".cu")]
    result = subprocess.run(
        [clang_format, "--dry-run", "-Werror", *sources], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
