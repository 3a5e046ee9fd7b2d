"""The demo on made-up data, evaluation and plot of its run, and command lines that are wrong."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from train.__main__ import main
from train.recipe import load_recipe

STAGES = ["pretrain", "sft", "weak", "supervised"]


def test_demo_goes_through_everything_and_keeps_it(
    small_run: Path, copied_run: Callable[..., list[str]], tmp_path: Path
) -> None:
    assert "SentenceTransformer" in (small_run / "printed.txt").read_text()
    run = small_run / "run"
    assert list(json.loads((run / "scores.json").read_text())) == ["BM25", "untrained", *STAGES]
    assert (run / "summary.png").is_file()
    recipe = load_recipe(str(run))
    assert (recipe.folder, recipe.supervised.num_negatives) == (run, 3)

    arguments = copied_run(*(path.name for path in run.iterdir()))
    models = [tmp_path / stage / "model" / "model.safetensors" for stage in STAGES]
    written = [model.stat().st_mtime_ns for model in models]
    assert main(["demo", *arguments, "--resume"]) == 0
    assert [model.stat().st_mtime_ns for model in models] == written


def test_evaluate_and_plot(
    small_run: Path, copied_run: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = copied_run("tokenizer", *STAGES)
    assert main(["evaluate", *arguments]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("BM25", "untrained", *STAGES, "nDCG@10"))
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["BM25"]["HeadingToSection"]["metrics"]["ndcg_at_10"] > 0.5
    assert scores == json.loads((small_run / "run" / "scores.json").read_text())
    assert main(["plot", *arguments]) == 0
    assert (tmp_path / "summary.png").read_bytes().startswith(b"\x89PNG")


def test_bad_command_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--weak.steps"]) == 2
    assert "--weak.steps: needs a value" in capsys.readouterr().err
    assert main(["demo", "stray"]) == 2
    assert "'stray': not an option" in capsys.readouterr().err
    assert main(["weak", "--recipe", "conan-1.4b", "--output", str(tmp_path)]) == 2
    assert "weak.sources: is empty" in capsys.readouterr().err
    assert main(["tokenizer", "--output", f"{os.devnull}/x"]) == 2
    assert os.devnull in capsys.readouterr().err
