"""The suites by name, imported when asked for."""

from __future__ import annotations

import importlib
from typing import Any

from benchmarks.suite import Suite


def load(name: str) -> Suite[Any]:
    return importlib.import_module(f"benchmarks.{name}.suite").SUITE
