"""Fixtures of several benchmark tests."""

import sys
from types import ModuleType

import pytest


@pytest.fixture
def install(monkeypatch):
    """Puts a made-up module with the given members into sys.modules."""

    def put(name, **members):
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return put
