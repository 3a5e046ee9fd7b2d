"""Which implementations of the operators exist here, and which one a call gets.

An implementation of an operator is a module; the operator's file maps backend names to modules (for example
`attention.IMPLEMENTATIONS`). A new backend needs two things: an entry there, and `None` from `missing_reason`.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

from ._version import __version__

BACKENDS = ("auto", "torch", "cuda", "emulated")
_warned: set[str] = set()


def missing_reason(backend: str) -> str | None:
    """Why `backend` cannot be used in this installation; None if it can."""
    if backend == "torch":
        return None
    what = "CUDA kernels" if backend == "cuda" else "CPU emulation of the CUDA kernels"
    return f"this installation of conan_fast {__version__} was built without the {what}"


def choose(backend: str, device: torch.device) -> str:
    """The backend that a call with tensors on `device` uses.

    "auto" takes the kernels for a CUDA tensor and torch for any other; where the kernels are missing it falls back to
    torch with one warning per process. Raises ValueError for an unknown name and RuntimeError for a missing backend
    that was asked for by name.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")
    if backend != "auto":
        reason = missing_reason(backend)
        if reason is not None:
            raise RuntimeError(f"backend={backend!r} is not available: {reason} (see conan_fast.build_info())")
        return backend
    if device.type != "cuda":
        return "torch"
    reason = missing_reason("cuda")
    if reason is None:
        return "cuda"
    if not torch.compiler.is_compiling() and reason not in _warned:
        _warned.add(reason)
        warnings.warn(f"conan_fast falls back to backend='torch' for CUDA tensors: {reason}", stacklevel=3)
    return "torch"


def build_info() -> dict[str, Any]:
    """What this installation holds.

    Keys: "version"; "compiled_architectures" (list of names such as "sm_90a"); "cuda_version" the kernels were
    compiled with (None without kernels); "available_backends"; "missing_backends" (name -> reason).
    """
    reasons = {name: missing_reason(name) for name in BACKENDS if name != "auto"}
    return {
        "version": __version__,
        "compiled_architectures": [],
        "cuda_version": None,
        "available_backends": [name for name, reason in reasons.items() if reason is None],
        "missing_backends": {name: reason for name, reason in reasons.items() if reason is not None},
    }
