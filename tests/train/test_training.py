"""Training: the loss falls, the recipe is followed, and errors say what to do."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from train.__main__ import main
from train.loop import learning_rate
from train.metrics import read_metrics
from train.recipe import StageRecipe


def test_gradient_accumulation_trains_the_same(
    small_run: Path, copied_run: Callable[..., list[str]], tmp_path: Path
) -> None:
    arguments = copied_run("tokenizer", "weak", "mine")
    assert main(["supervised", *arguments, "--supervised.micro_batch_tokens=64"]) == 0
    for a, b in zip(
        read_metrics(tmp_path / "supervised/metrics.jsonl"),
        read_metrics(small_run / "run/supervised/metrics.jsonl"),
        strict=True,
    ):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-3)


def test_a_stage_without_its_predecessor_says_what_to_run(
    copied_run: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["weak", *copied_run("tokenizer")]) == 2
    assert "first run: python -m train sft" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run(
    copied_run: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = copied_run("tokenizer", "weak", "mine")
    assert main(["supervised", *arguments, "--supervised.learning_rate=1e30"]) == 2
    assert re.search(r"supervised: the gradient of step \d+ is (nan|inf)", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("field", "value", "alphas"),
    [
        ("soft_mask", "linear", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ("soft_mask", "off", [1.0] * 6),
        ("soft_mask", "accelerating", [0.0, 0.04, 0.16, 0.36, 0.64, 1.0]),
    ],
)
def test_one_line_of_the_recipe_sets_the_mask(
    copied_run: Callable[..., list[str]], tmp_path: Path, field: str, value: str, alphas: list[float]
) -> None:
    arguments = [*copied_run("tokenizer", "sft"), f"--weak.{field}={value}", "--weak.log_every=1"]
    assert main(["weak", *arguments]) == 0
    assert [line["alpha"] for line in read_metrics(tmp_path / "weak/metrics.jsonl")] == pytest.approx(alphas)


def test_learning_rate_warms_up_and_decays() -> None:
    recipe = StageRecipe(steps=100, learning_rate=1.0, warmup=0.1, decay="cosine", min_rate=0.1)
    rates = [learning_rate(recipe, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55)
    assert rates[99] == pytest.approx(0.1, abs=1e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_training_learns(small_run: Path) -> None:
    def loss(stage: str, name: str) -> list[float]:
        return [line[name] for line in read_metrics(small_run / "run" / stage / "metrics.jsonl") if name in line]

    retrieval = loss("supervised", f"loss/{small_run.as_posix()}/data/pairs.jsonl")
    assert np.mean(retrieval[-4:]) < 0.9 * np.mean(retrieval[:4])
    assert loss("pretrain", "loss")[-1] < loss("pretrain", "loss")[0]
