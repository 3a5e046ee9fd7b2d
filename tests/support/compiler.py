"""The C++ compiler of the tests: its name, its sanitizer libraries, and builds that run in the background."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

COMPILER = os.environ.get("CXX", "c++")
_builds = ThreadPoolExecutor(1)


def compiler_missing() -> str | None:
    """Why nothing can be compiled here; None if it can."""
    return None if shutil.which(COMPILER) else f"no C++ compiler: {COMPILER} is not on PATH (CXX names another)"


@functools.cache
def in_background(build: Callable[..., Path], name: str) -> Future[Path]:
    """The running or finished `build(name)`: the first call starts it, later ones return the same future."""
    return _builds.submit(build, name)


def run(*command: str) -> None:
    """Runs the command. Raises RuntimeError with its output if it fails."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stdout}")


def library_missing(name: str) -> str | None:
    """Why the compiler's library `name`, for example libasan.so, cannot be used; None if it can."""
    if reason := compiler_missing():
        return reason
    return None if Path(_library(name)).is_absolute() else f"{COMPILER} has no {name}"


def address_sanitizer_environment() -> dict[str, str]:
    """Environment of a Python that loads a library compiled with -fsanitize=address."""
    return os.environ | {
        # The sanitizer must be loaded first. It looks for __cxa_throw when the process starts, and Python has none.
        "LD_PRELOAD": f"{_library('libasan.so')} {_library('libstdc++.so.6')}",
        "ASAN_OPTIONS": "detect_leaks=0",  # Python leaks at exit
    }


def _library(name: str) -> str:
    """Path of the compiler's library; the name alone if the compiler does not have it."""
    command = [COMPILER, f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
