"""Compiles the kernels for the CPU (conan_fast._emulated) and loads them, for tests, sanitizers and mutations.

The objects are kept in build/, so only changed sources are compiled again. CONAN_FAST_EMULATED names a module that is
already built.
"""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

from filelock import FileLock

from tests.support.compiler import run
from tests.support.paths import ROOT

NAME = "conan_fast._emulated"


def build(name: str, *, flags: str = "", head_dims: str = "", source: Path = ROOT) -> Path:
    """Compiles `source` with `flags` in build/emulated-`name`; returns the path of the module."""
    folder = ROOT / "build" / f"emulated-{name}-{sys.implementation.cache_tag}"
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_CXX_FLAGS": flags,
        "CONAN_FAST_BUILD_CUDA": "OFF",
        "CONAN_FAST_BUILD_EMULATION": "ON",
        "CONAN_FAST_HEAD_DIMS": head_dims or "64;96;112;128",
        "Python_EXECUTABLE": sys.executable,
    }
    definitions = [f"-D{key}={value}" for key, value in options.items()]
    with FileLock(folder / "lock"):  # the workers of pytest-xdist start at once
        run("cmake", "-S", str(source), "-B", str(folder), "-G", "Ninja", *definitions)
        run("cmake", "--build", str(folder))
    return folder / f"_emulated{sysconfig.get_config_var('EXT_SUFFIX')}"


def load(path: Path) -> ModuleType:
    """Imports the module file as conan_fast._emulated: from then on backend="emulated" works in this process."""
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[NAME] = module
    return module
