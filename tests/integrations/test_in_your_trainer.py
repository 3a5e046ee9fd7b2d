"""The scripts of docs/in_your_trainer.md run, with their changes and without."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from tests.support import families
from tests.support.paths import ROOT
from tests.support.small_tokenizer import WORDS, small_tokenizer

TEXT = (ROOT / "docs" / "in_your_trainer.md").read_text()
RECIPES = dict(re.findall(r"^## (.+?)$\n\n```diff\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))


def test_there_is_a_recipe_for_each_trainer() -> None:
    assert list(RECIPES) == ["Plain PyTorch", "transformers' Trainer", "sentence-transformers"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a small Qwen3 with its tokenizer, a file of pairs)."""
    folder = tmp_path_factory.mktemp("inputs")
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(transformers.Qwen3Config(**families.GQA, head_dim=8))
    model.save_pretrained(folder / "model")
    small_tokenizer().save_pretrained(folder / "model")
    rows = [{"query": f"the {a} {b}", "answer": f"a {b} sat on the {a}"} for a in WORDS for b in WORDS[:6]]
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder / "model", folder / "pairs.jsonl"


def script(recipe: str, sign: str, inputs: tuple[Path, Path]) -> str:
    lines = [line[1:] for line in recipe.splitlines() if not line or line[0] in (" ", sign)]
    text = "\n".join(lines)
    replaced = {
        '"Qwen/Qwen3-0.6B"': repr(str(inputs[0])),
        '"sentence-transformers/natural-questions"': f'"json", data_files={str(inputs[1])!r}',
        "batch_size=64": "batch_size=16",
        "batch_size=1024": "batch_size=32",
        "[1024, 512, 256]": "[32, 16, 8]",
        "num_train_epochs=1": "num_train_epochs=1, use_cpu=True, report_to=[]",
    }
    for old, new in replaced.items():
        text = text.replace(old, new)
    assert "Qwen/" not in text and "natural-questions" not in text
    return text


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("sign", ["+", pytest.param("-", marks=pytest.mark.proof)])
def test_the_script_runs(name: str, sign: str, inputs: tuple[Path, Path], tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    command = [sys.executable, "-c", script(RECIPES[name], sign, inputs)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    config = json.loads((tmp_path / "embedder" / "config.json").read_text())
    assert config.get("is_causal", True) is (sign == "-")
    transformers.AutoModel.from_pretrained(tmp_path / "embedder")
