"""The compiled kernels: `_C` for GPUs and `_emulated`, the same kernels compiled for the CPU, which the tests build.

Both modules have the same functions. They do not link torch: tensors are passed as DLPack capsules.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

MODULES = {"cuda": "_C", "emulated": "_emulated"}
OLDEST_CAPABILITY = (8, 0)


@cache
def build_facts() -> dict[str, Any]:
    """What setup.py wrote down when it compiled: see `build_kernels` there."""
    file = Path(__file__).resolve().with_name("_build.json")
    if not file.exists():
        return {
            "built": False,
            "reason": _not_installed(file.parent),
            "cuda_version": None,
            "architectures": [],
            "kernels": [],
        }
    facts: dict[str, Any] = json.loads(file.read_text())
    return facts


def _not_installed(package: Path) -> str:
    """Why `package`, the folder of this code, has no kernels: pip did not write it."""
    source = package.parent
    # Python searches the folder it is started in first. What would it find without that one?
    elsewhere = [entry for entry in sys.path if Path(entry).resolve() != source]
    finders = [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]
    specs = filter(None, (finder.find_spec(package.name, elsewhere) for finder in finders))
    installed = [Path(spec.origin).parent for spec in specs if spec.origin]
    installed = [folder for folder in installed if folder.resolve() != package and (folder / "_build.json").exists()]
    if installed:
        return (
            f"Python imported the source folder {package}, in which no kernels were compiled, and not the installation "
            f"in {installed[0]}: start Python outside of {source} (and take it off PYTHONPATH), or install the source "
            f"folder with pip install -e {source}"
        )
    return f"{package} was not installed by pip, so no kernels were compiled: pip install -e {source}"


@cache
def module(backend: str) -> ModuleType:
    """The compiled module of "cuda" or "emulated". Raises ImportError where it is missing or does not load."""
    return importlib.import_module(f"conan_fast.{MODULES[backend]}")


def missing_reason(backend: str) -> str | None:
    """Why the kernels cannot run here; None if they can."""
    if backend == "emulated":
        if "conan_fast._emulated" in sys.modules:
            return None
        return "the kernels compiled for the CPU are not part of an installation, the tests build them"
    return cuda_missing_reason()


@cache  # every call of an operator asks
def cuda_missing_reason() -> str | None:
    """`missing_reason("cuda")`, which does not change while a process runs."""
    facts = build_facts()
    if not facts["built"]:
        return f"this conan_fast has no compiled kernels: {facts['reason']}"
    if torch.version.hip is not None:
        return "torch is built for ROCm, the kernels are for NVIDIA GPUs"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    try:
        compiled = module("cuda")
    except ImportError as error:
        return f"the compiled kernels do not load: {error}"
    driver, runtime = compiled.driver_version(), compiled.runtime_version()
    if driver // 1000 < runtime // 1000:
        return f"the kernels were compiled by CUDA {runtime // 1000}, the driver supports CUDA {driver // 1000} at most"
    return None


@cache
def device_unsupported(index: int) -> str | None:
    """Why the kernels cannot run on this GPU; None if they can."""
    capability = torch.cuda.get_device_capability(index)
    chip = f"compute capability {capability[0]}.{capability[1]} of cuda:{index}"
    if capability < OLDEST_CAPABILITY:
        return f"the kernels need compute capability 8.0 (Ampere) or newer, got {chip}"
    architectures = build_facts()["architectures"]
    if not covers(architectures, capability):
        return f"the kernels were compiled for {', '.join(architectures)}, which does not cover {chip}"
    return None


@torch.compiler.assume_constant_result
def gpu_unsupported(index: int | None) -> str | None:
    """`device_unsupported` of a torch device's index, None for the current GPU."""
    return device_unsupported(torch.cuda.current_device() if index is None else index)


def covers(architectures: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether code for `architectures` (names as nvcc's) runs on a GPU of this compute capability.

    Machine code (sm_86) runs on its own major version from its minor one on, with a suffix (sm_90a) on exactly that
    chip, with "f" on its family; PTX (compute_80) is compiled by the driver for anything newer, with a suffix as above.
    """
    for architecture in architectures:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", architecture)
        if match is None:
            continue
        kind, suffix, code = match[1], match[4], (int(match[2]), int(match[3]))
        same_major = capability[0] == code[0] and capability >= code
        newer = capability >= code
        if code == capability or (suffix != "a" and same_major) or (kind == "compute" and not suffix and newer):
            return True
    return False
