"""Losses for sentence-transformers 5 and 6, unpadded inputs, and the files that make a saved model load there.

The losses import sentence-transformers when they are first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .module_files import write_module_files

if TYPE_CHECKING:
    from .cosent import CoSENTLoss
    from .info_nce import CachedInfoNCELoss, InfoNCELoss
    from .unpad import unpad_inputs

__all__ = ["CachedInfoNCELoss", "CoSENTLoss", "InfoNCELoss", "unpad_inputs", "write_module_files"]

_FILES = {"CachedInfoNCELoss": "info_nce", "CoSENTLoss": "cosent", "InfoNCELoss": "info_nce", "unpad_inputs": "unpad"}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)
