"""The source distribution: what it holds, and the wheel that is built from it (without kernels)."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support.repository import copy_repository


def build(tree: Path, hook: str) -> Path:
    """The file that the build backend's hook makes of the tree."""
    program = f"import sys, build_backend; build_backend.{hook}(sys.argv[1])"
    result = subprocess.run(
        [sys.executable, "-c", program, str(tree.parent / hook)], cwd=tree, capture_output=True, text=True, check=False,
        env=os.environ | {"CONAN_FAST_CUDA": "0"},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    [made] = (tree.parent / hook).iterdir()
    return made


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """(files of the repository, the unpacked source distribution)."""
    folder = tmp_path_factory.mktemp("sdist")
    names = copy_repository(folder / "repository")
    with tarfile.open(build(folder / "repository", "build_sdist")) as archive:
        archive.extractall(folder, filter="data")
    [unpacked] = folder.glob("conan_fast-*")
    return names, unpacked


def test_it_holds_what_a_build_needs_and_no_tests(sources):
    names, unpacked = sources
    held = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    made_by_setuptools = {name for name in held if name.startswith("conan_fast.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    needed = {name for name in names if name.startswith(("conan_fast/", "csrc/"))}
    needed |= {
        "CMakeLists.txt",
        "LICENSE",
        "MANIFEST.in",
        "README.md",
        "build_backend.py",
        "pyproject.toml",
        "setup.py",
    }
    assert held - made_by_setuptools == needed


def test_the_wheel_made_of_it_holds_every_module_and_imports(sources, tmp_path):
    names, unpacked = sources
    with zipfile.ZipFile(build(unpacked, "build_wheel")) as wheel:
        wheel.extractall(tmp_path)
    held = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "conan_fast").rglob("*") if path.is_file()}
    assert held == {name for name in names if name.startswith("conan_fast/")} | {"conan_fast/_build.json"}
    program = "import conan_fast; print(conan_fast.__file__, conan_fast.build_info()['missing_backends']['cuda'])"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    assert str(tmp_path / "conan_fast" / "__init__.py") in result.stdout
    assert "CONAN_FAST_CUDA=0 was set when conan_fast was installed" in result.stdout
