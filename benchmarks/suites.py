"""The suites by name, imported when asked for."""

from __future__ import annotations

import importlib
from typing import Any

from benchmarks.suite import Suite

NAMES = ("attention", "contrastive", "step")


def load(name: str) -> Suite[Any]:
    return importlib.import_module(f"benchmarks.{name}.suite").SUITE
