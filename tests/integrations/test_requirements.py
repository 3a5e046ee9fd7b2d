"""The error where a library that an integration needs is missing or too old, and the extras that it names."""

import importlib.metadata
import re

import pytest

from conan_fast.integrations import _requirements
from tests.support.paths import ROOT


def test_a_missing_library_is_named_with_its_extra():
    with pytest.raises(
        ImportError,
        match=r'no-such-library is not installed, expected no-such-library>=5\.2: pip install "conan-fast\[x\]"',
    ):
        _requirements.require("no-such-library", extra="x", minimum="5.2")


@pytest.mark.parametrize(
    ("found", "right"),
    [
        ("5.2", True),
        ("5.2.0", True),
        ("5.10.1", True),
        ("6.0.0.dev0", True),
        ("5.2rc1", True),
        ("5.1.9", False),
        ("4.57", False),
        ("5", False),
    ],
)
def test_an_old_library_is_named_with_what_is_expected(monkeypatch, found, right):
    monkeypatch.setattr(importlib.metadata, "version", lambda package: found)
    if right:
        _requirements.require("transformers", extra="transformers", minimum="5.2")
        return
    with pytest.raises(
        ImportError, match=rf"transformers is too old: found {re.escape(found)}, expected transformers>=5\.2: "
    ):
        _requirements.require("transformers", extra="transformers", minimum="5.2")


def test_every_error_names_an_extra_with_that_version():
    extras = ROOT.joinpath("pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    calls = r'require\("([\w-]+)", extra="([\w-]+)", minimum="([\d.]+)"\)'
    for file in (ROOT / "conan_fast" / "integrations").rglob("*.py"):
        for package, extra, minimum in re.findall(calls, file.read_text()):
            assert re.search(rf'^{extra} = \[.*"{package}>={re.escape(minimum)}"', extras, re.MULTILINE), file
