"""Compiles tests/emulation/*.cpp, small CUDA kernels, with the emulation, and launches them by name.

Plain ctypes and any buffers as arguments, so that a bare Python under AddressSanitizer can do the same.
"""

from __future__ import annotations

import ast
import ctypes
import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SOURCES = [*sorted(ROOT.glob("tests/emulation/*.cpp")), *sorted(ROOT.glob("csrc/emulation/*.cpp"))]
HEADERS = [*ROOT.glob("tests/emulation/*.h"), *ROOT.glob("csrc/emulation/*.h"), *ROOT.glob("csrc/device/*.h")]
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
FLAGS += ["-DCONAN_FAST_EMULATED", f"-I{ROOT / 'csrc'}"]
COMPILER = os.environ.get("CXX", "c++")


class KernelError(Exception):
    """What the emulation found; the text is its own."""


class Argument(ctypes.Structure):
    _fields_ = (("format", ctypes.c_char), ("data", ctypes.c_void_p), ("number", ctypes.c_int64))


def build(name: str, *flags: str) -> Path:
    """The library compiled with these flags into build/emulation-`name`, again only if a source or a flag changed."""
    from filelock import FileLock  # not in the bare Python that loads the library

    folder = ROOT / "build" / f"emulation-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    library, stamp = folder / "kernels.so", folder / "made-from"
    with FileLock(folder / "lock"):  # pytest-xdist's processes start at once
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
    # To a new file: another process may have the old one loaded.
    fresh = library.with_suffix(".new")
    run(COMPILER, *flags, "-shared", *map(str, objects), "-o", str(fresh), "-pthread", "-ldl")
    fresh.replace(library)


def run(*command: str) -> None:
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stdout}")


class Kernels:
    """The library, loaded."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.run_kernel.argtypes = [
            ctypes.c_char_p, ctypes.c_uint * 3, ctypes.c_uint * 3, ctypes.c_size_t,
            ctypes.POINTER(Argument), ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t,
        ]  # fmt: skip
        self._library.set_seed.argtypes = [ctypes.c_uint64]

    def launch(self, name: str, *arguments: Any, grid: Any = 1, block: Any = 32, shared: int = 0) -> None:
        """kernel<<<grid, block, shared>>>(arguments...): ints, and writable buffers that it reads and writes."""
        passed = (Argument * len(arguments))(*map(as_argument, arguments))
        text = ctypes.create_string_buffer(4096)
        outcome = self._library.run_kernel(
            name.encode(), triple(grid), triple(block), shared, passed, len(arguments), text, len(text)
        )
        if outcome != 0:
            raise (KernelError if outcome == 1 else TypeError)(text.value.decode())

    def set_seed(self, seed: int) -> None:
        self._library.set_seed(seed)

    def statistics(self) -> dict[str, int]:
        sums = (ctypes.c_int64 * 4)()
        self._library.statistics(sums)
        return dict(zip(("launches", "blocks", "collectives", "bank_conflicts"), sums, strict=True))


def as_argument(value: Any) -> Argument:
    if isinstance(value, int):
        return Argument(b"n", None, value)
    view = memoryview(value)
    assert view.c_contiguous and view.nbytes > 0
    return Argument(view.format.lstrip("<").encode(), ctypes.addressof(ctypes.c_char.from_buffer(value)), 0)


def triple(value: Any) -> Any:
    values = value if isinstance(value, tuple) else (value,)
    return (ctypes.c_uint * 3)(*values, *[1] * (3 - len(values)))


def main(library: str, seeds: str, launches: str) -> None:
    """Used under AddressSanitizer: launches [(name, arguments, options)...] with each of some seeds.

    "f8" among the arguments stands for 8 floats of their own, which a buffer of ctypes holds without bytes to spare. A
    KernelError is printed.
    """
    kernels = Kernels(Path(library))
    element = {"f": ctypes.c_float, "i": ctypes.c_int, "I": ctypes.c_uint, "H": ctypes.c_uint16}
    for seed in range(int(seeds)):
        kernels.set_seed(seed)
        for name, arguments, options in ast.literal_eval(launches):
            values = [(element[x[0]] * int(x[1:]))() if isinstance(x, str) else x for x in arguments]
            try:
                kernels.launch(name, *values, **options)
            except KernelError as error:
                print("KernelError:", error)
    print("finished")


if __name__ == "__main__":
    main(*sys.argv[1:])
