"""Compiles tests/emulation/*.cpp, small CUDA kernels, with the emulation."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock

from tests.support.compiler import COMPILER, run
from tests.support.paths import ROOT

SOURCES = [*sorted(ROOT.glob("tests/emulation/*.cpp")), *sorted(ROOT.glob("csrc/emulation/*.cpp"))]
HEADERS = [*ROOT.glob("tests/emulation/*.h"), *ROOT.glob("csrc/emulation/*.h"), *ROOT.glob("csrc/device/*.h")]
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
FLAGS += ["-DCONAN_FAST_EMULATED", f"-I{ROOT / 'csrc'}"]


def build(name: str, *flags: str) -> Path:
    """Compiles the library in build/emulation-`name` if a source or a flag has changed; returns its path."""
    folder = ROOT / "build" / f"emulation-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    library, stamp = folder / "kernels.so", folder / "made-from"
    with FileLock(folder / "lock"):  # the workers of pytest-xdist start at once
        made_from = digest(flags)
        if not (library.exists() and stamp.exists() and stamp.read_text() == made_from):
            stamp.unlink(missing_ok=True)
            compile_library(folder, library, flags)
            stamp.write_text(made_from)
    return library


def digest(flags: Sequence[str]) -> str:
    sha = hashlib.sha256(repr((COMPILER, FLAGS, flags)).encode())
    for file in sorted([*SOURCES, *HEADERS]):
        sha.update(file.name.encode() + b"\0" + file.read_bytes())
    return sha.hexdigest()


def compile_library(folder: Path, library: Path, flags: Sequence[str]) -> None:
    objects = [folder / f"{source.stem}.o" for source in SOURCES]

    def compile_one(source: Path, result: Path) -> None:
        run(COMPILER, *FLAGS, *flags, "-c", str(source), "-o", str(result))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, SOURCES, objects))
    # To a new file, because another process may have loaded the old one.
    fresh = library.with_suffix(".new")
    run(COMPILER, *flags, "-shared", *map(str, objects), "-o", str(fresh), "-pthread", "-ldl")
    fresh.replace(library)
