"""The README's Python runs, its links lead to files, and its options exist."""

import re

import pytest

from tests.support.paths import ROOT
from train.__main__ import _overrides
from train.recipe import load_recipe

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_blocks_run(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {})


def test_links_lead_to_files() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_options_in_commands_are_fields_of_the_recipe() -> None:
    fields = re.findall(r"--([a-z_]+\.[a-z_.0-9]+)[= ](\S+)", README)
    assert fields
    for name, value in fields:
        load_recipe("tiny", _overrides([f"--{name}={value}"]))
