"""The compiled kernels and their resources by ptxas, from `conan_fast.build_info(kernels=True)`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DTYPES = {"Bf16": "bf16", "Fp16": "fp16", "Fp32": "fp32"}
# The first number among the template arguments of these is the head_dim.
HEAD_DIM_FIRST = ("sm80_forward", "sm80_backward", "sm80_backward_dq")


class UnknownKernel(ValueError):
    """No kernel has the name that was asked for, or the filters leave none."""


@dataclass(frozen=True)
class Kernel:
    """A kernel for one architecture. Sizes are bytes: shared memory and spills of a block and a thread."""

    name: str  # "sm80_forward<Bf16, 112>"
    family: str  # "sm80_forward"
    arguments: tuple[str, ...]  # of the template
    architecture: str
    registers: int
    static_shared: int
    dynamic_shared: int
    stack: int
    spills: int
    threads: int | None  # of a block; None: an older build did not note it
    symbol: str | None  # the mangled name

    @property
    def dtype(self) -> str | None:
        """Of the features; None for a kernel that does not depend on it."""
        return next((DTYPES[name] for name in self.arguments if name in DTYPES), None)

    @property
    def head_dim(self) -> int | None:
        numbers = [int(argument) for argument in self.arguments if argument.isdigit()]
        return numbers[0] if self.family.startswith(HEAD_DIM_FIRST) and numbers else None

    def matches(self, query: str) -> bool:
        """`query`: part of the name, with or without the dtype, spaces aside."""
        without_dtype = [argument for argument in self.arguments if argument not in DTYPES]
        names = (self.name, f"{self.family}<{','.join(without_dtype)}>")
        return any(query.replace(" ", "").lower() in name.replace(" ", "").lower() for name in names)

    @staticmethod
    def of(entry: Mapping[str, Any]) -> "Kernel":
        """Of one of build_info(kernels=True)["kernels"]."""
        # "void conan_fast::sm80_forward<conan_fast::Bf16, 112>(conan_fast::AttentionParams)"
        name = re.sub(r"^void |\w+::", "", entry["name"]).split("(")[0]
        family, _, arguments = name.rstrip(">").partition("<")
        return Kernel(
            name,
            family,
            tuple(arguments.split(", ")) if arguments else (),
            **{key: entry[key] for key in ("architecture", "registers")},
            **{key: entry[f"{key}_bytes"] for key in ("static_shared", "dynamic_shared", "stack")},
            spills=entry["spill_store_bytes"] + entry["spill_load_bytes"],
            threads=entry.get("threads_per_block"),
            symbol=entry.get("symbol"),
        )


def kernels_of(entries: Iterable[Mapping[str, Any]]) -> list[Kernel]:
    return [Kernel.of(entry) for entry in entries]


def choose(kernels: Sequence[Kernel], query: str, **wanted: Any) -> dict[str, list[Kernel]]:
    """The selected kernels, by name: each name has one kernel for each architecture.

    The full name of a family selects that family alone. wanted: architecture, head_dim and dtype, None for any; without
    a dtype: bf16 if the kernel exists in it, else all.
    """
    families = sorted({kernel.family for kernel in kernels})
    found = [kernel for kernel in kernels if (kernel.family == query if query in families else kernel.matches(query))]
    if not found:
        raise UnknownKernel(f"no kernel is called {query!r}; expected (part of) one of {', '.join(families)}")
    found = _filter(found, "architecture", wanted.get("architecture"))
    with_head_dim = [kernel for kernel in found if kernel.head_dim is not None]
    if with_head_dim:
        others = [kernel for kernel in found if kernel.head_dim is None]
        found = others + _filter(with_head_dim, "head_dim", wanted.get("head_dim"))
    if (dtype := wanted.get("dtype")) is not None:
        found = _filter(found, "dtype", dtype)
    elif query not in {kernel.name for kernel in found}:
        in_bf16 = {kernel.family for kernel in found if kernel.dtype == "bf16"}
        found = [kernel for kernel in found if kernel.dtype == "bf16" or kernel.family not in in_bf16]
    by_name: dict[str, list[Kernel]] = {}
    for kernel in sorted(found, key=lambda kernel: (kernel.family, kernel.head_dim or 0)):
        by_name.setdefault(kernel.name, []).append(kernel)
    return {name: sorted(same, key=lambda kernel: kernel.architecture) for name, same in by_name.items()}


def _filter(kernels: list[Kernel], attribute: str, wanted: object) -> list[Kernel]:
    kept = [kernel for kernel in kernels if wanted is None or getattr(kernel, attribute) == wanted]
    if not kept:
        known = ", ".join(sorted({str(getattr(kernel, attribute)) for kernel in kernels}))
        raise UnknownKernel(f"{kernels[0].family} is not compiled for {attribute} {wanted}; expected one of {known}")
    return kept
