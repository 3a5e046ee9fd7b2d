"""Which implementations of the operators exist here, and which one a call gets.

Each operator has a table from backend name to implementation (for example `contrastive.backend.BACKENDS`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from . import _native
from ._version import __version__

BACKENDS = ("auto", "torch", "cuda", "emulated")
_warned: set[str] = set()


@torch.compiler.assume_constant_result
def missing_reason(backend: str) -> str | None:
    """Why `backend` cannot be used in this installation; None if it can."""
    return None if backend == "torch" else _native.missing_reason(backend)


def choose(backend: str, device: torch.device, unsupported: Callable[[str], Exception | None]) -> str:
    """The backend that a call with tensors on `device` uses.

    unsupported: why the kernels of "cuda" or "emulated" do not support the call, or None.
    "auto" uses the kernels for a CUDA tensor and torch for any other; where the kernels are missing or do not support
    the call it falls back to torch, with one warning per reason and process. Raises ValueError for an unknown name;
    for a backend that was requested by name RuntimeError where it is missing, else what `unsupported` says.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")
    if backend == "torch" or (backend == "auto" and device.type != "cuda"):
        return "torch"
    name = "cuda" if backend == "auto" else backend
    missing = missing_reason(name)
    error: Exception | None
    if missing is not None:
        missing = f"backend={name!r} is not available: {missing} (see conan_fast.build_info())"
        error = RuntimeError(missing)
    else:
        error = unsupported(name)
    if error is None:
        return name
    if backend != "auto":
        raise error
    _warn_once(f"conan_fast falls back to backend='torch' for CUDA tensors: {error}")
    return "torch"


def _warn_once(message: str) -> None:
    if not torch.compiler.is_compiling() and message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=5)


def build_info(*, kernels: bool = False) -> dict[str, Any]:
    """What this installation holds.

    Keys: "version"; "compiled_architectures" (list of names such as "sm_90a"; "compute_80" is PTX for newer chips);
    "cuda_version" the kernels were compiled with (None without kernels); "available_backends"; "missing_backends"
    (name -> reason). kernels: adds "kernels", a long list (per kernel and architecture: name, symbol, registers,
    stack_bytes, spill_store_bytes, spill_load_bytes, static_shared_bytes, as ptxas reported them, and threads_per_block
    and dynamic_shared_bytes of a launch).
    """
    reasons = {name: missing_reason(name) for name in BACKENDS if name != "auto"}
    facts = _native.build_facts()
    info = {
        "version": __version__,
        "compiled_architectures": facts["architectures"],
        "cuda_version": facts["cuda_version"],
        "available_backends": [name for name, reason in reasons.items() if reason is None],
        "missing_backends": {name: reason for name, reason in reasons.items() if reason is not None},
    }
    return info | {"kernels": facts["kernels"]} if kernels else info
