"""Launches the small CUDA kernels of tests/emulation/*.cpp by name.

Imports the standard library alone, so that a bare Python under AddressSanitizer can run this file.
"""

import ast
import ctypes
import sys
from pathlib import Path
from typing import Any


class KernelError(Exception):
    """The emulation found a mistake. The text is the emulation's."""


class Argument(ctypes.Structure):
    _fields_ = (("format", ctypes.c_char), ("data", ctypes.c_void_p), ("number", ctypes.c_int64))


class Kernels:
    """The loaded library."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.run_kernel.argtypes = [
            ctypes.c_char_p, ctypes.c_uint * 3, ctypes.c_uint * 3, ctypes.c_size_t,
            ctypes.POINTER(Argument), ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t,
        ]  # fmt: skip
        self._library.set_seed.argtypes = [ctypes.c_uint64]

    def launch(self, name: str, *arguments: Any, grid: Any = 1, block: Any = 32, shared: int = 0) -> None:
        """kernel<<<grid, block, shared>>>(arguments...). The arguments are ints and writable buffers."""
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
    """Used under AddressSanitizer: launches [(name, arguments, options), ...] with each seed below `seeds`.

    The argument "f8" stands for a new buffer of 8 floats: one of ctypes, which has no bytes to spare. A KernelError is
    printed.
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
