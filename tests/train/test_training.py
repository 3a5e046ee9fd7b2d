"""What people expect of a trainer: the loss falls, a run stops and resumes, nothing is lost or silently overwritten."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support.paths import ROOT
from train.__main__ import main
from train.loop import learning_rate
from train.metrics import read_metrics
from train.recipe import StageRecipe, load_recipe


def copy_for_supervised(small_run: Path, target: Path) -> Path:
    """A run that is ready for the supervised stage."""
    for part in ("tokenizer", "weak", "mine"):
        shutil.copytree(small_run / part, target / part)
    return target


def supervised(small_data: Path, output: Path, *more: str) -> list[str]:
    return ["supervised", "--recipe", str(small_data / "recipe.toml"), "--output", str(output), *more]


def command(arguments: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "train", *arguments],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def kill_after(process: subprocess.Popen[bytes], metrics: Path, step: int, number: signal.Signals) -> None:
    """Send the signal once `step` is in metrics.jsonl."""
    deadline = time.monotonic() + 120
    while not any(line["step"] >= step for line in _whole_lines(metrics)):
        assert process.poll() is None, f"the run ended before step {step}"
        assert time.monotonic() < deadline, f"step {step} was not reached"
        time.sleep(0.002)
    process.send_signal(number)
    process.wait()


def _whole_lines(metrics: Path) -> list[dict[str, float]]:
    text = metrics.read_text() if metrics.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


@pytest.fixture(scope="module")
def uninterrupted(small_data: Path, small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = copy_for_supervised(small_run, tmp_path_factory.mktemp("whole"))
    assert command(supervised(small_data, output)).wait() == 0
    return output / "supervised"


@pytest.mark.slow
def test_killed_three_times_writes_the_same_metrics_to_the_bit(
    small_data: Path, small_run: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    output = copy_for_supervised(small_run, tmp_path)
    metrics = output / "supervised" / "metrics.jsonl"
    steps = sorted(random.SystemRandom().sample(range(1, 23), 3))
    print(f"killed after steps {steps}")
    for i, step in enumerate(steps):
        kill_after(command(supervised(small_data, output, *["--resume"][:i])), metrics, step, signal.SIGKILL)
    assert command(supervised(small_data, output, "--resume")).wait() == 0
    assert metrics.read_bytes() == (uninterrupted / "metrics.jsonl").read_bytes()
    expected, got = (load_file(f / "model/model.safetensors") for f in (uninterrupted, output / "supervised"))
    assert expected.keys() == got.keys()
    assert all(np.array_equal(expected[name], got[name]) for name in expected)
    # The stage did what the test is about: negatives were replaced, before and after the kills.
    replaced = [line["replaced"] for line in read_metrics(metrics) if "replaced" in line]
    assert sum(share > 0 for share in replaced) >= 3


def test_ctrl_c_saves_and_resume_continues_exactly(
    small_data: Path, small_run: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    output = copy_for_supervised(small_run, tmp_path)
    metrics = output / "supervised" / "metrics.jsonl"
    process = command(supervised(small_data, output))
    kill_after(process, metrics, 7, signal.SIGINT)
    assert process.returncode == 130
    assert not (output / "supervised" / "model").exists()
    assert command(supervised(small_data, output, "--resume")).wait() == 0
    assert metrics.read_bytes() == (uninterrupted / "metrics.jsonl").read_bytes()


def test_gradient_accumulation_trains_the_same(
    small_data: Path, small_run: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    output = copy_for_supervised(small_run, tmp_path)
    assert main(supervised(small_data, output, "--supervised.micro_batch_tokens=64")) == 0
    for a, b in zip(
        read_metrics(output / "supervised/metrics.jsonl"), read_metrics(uninterrupted / "metrics.jsonl"), strict=True
    ):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-3)


def test_an_earlier_run_is_not_overwritten_by_accident(
    small_data: Path, small_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (small_run / "weak/metrics.jsonl").read_bytes()
    arguments = ["weak", "--recipe", str(small_data / "recipe.toml"), "--output", str(small_run)]
    assert main(arguments) == 2
    assert "--resume to go on with it or --overwrite" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 0  # finished: nothing to do
    assert (small_run / "weak/metrics.jsonl").read_bytes() == before


def test_resume_with_another_recipe_is_refused(
    small_data: Path, small_run: Path, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = copy_for_supervised(small_run, tmp_path)
    shutil.copytree(uninterrupted / "checkpoints", output / "supervised" / "checkpoints")
    assert main(supervised(small_data, output, "--resume", "--supervised.learning_rate=0.5")) == 2
    assert "other values of learning_rate" in capsys.readouterr().err


def test_a_stage_without_its_predecessor_says_what_to_run(
    small_data: Path, small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tokenizer", "--recipe", str(small_data / "recipe.toml"), "--output", str(tmp_path)]) == 0
    assert main(["weak", "--recipe", str(small_data / "recipe.toml"), "--output", str(tmp_path)]) == 2
    assert "first run: python -m train sft" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run(
    small_data: Path, small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = copy_for_supervised(small_run, tmp_path)
    assert main(supervised(small_data, output, "--supervised.learning_rate=1e30")) == 2
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
    small_data: Path, small_run: Path, tmp_path: Path, field: str, value: str, alphas: list[float]
) -> None:
    for part in ("tokenizer", "sft"):
        shutil.copytree(small_run / part, tmp_path / part)
    recipe = str(small_data / "recipe.toml")
    assert main(["weak", "--recipe", recipe, "--output", str(tmp_path), f"--weak.{field}={value}",
                 "--weak.log_every=1"]) == 0  # fmt: skip
    assert [line["alpha"] for line in read_metrics(tmp_path / "weak/metrics.jsonl")] == pytest.approx(alphas)


def test_learning_rate_warms_up_and_decays() -> None:
    recipe = StageRecipe(steps=100, learning_rate=1.0, warmup=0.1, decay="cosine", min_rate=0.1)
    rates = [learning_rate(recipe, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55)
    assert rates[99] == pytest.approx(0.1, abs=1e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_training_learns(small_data: Path, small_run: Path, uninterrupted: Path) -> None:
    def loss(folder: Path, name: str) -> list[float]:
        return [line[name] for line in read_metrics(folder / "metrics.jsonl") if name in line]

    retrieval = loss(uninterrupted, f"loss/{small_data.as_posix()}/pairs.jsonl")
    assert np.mean(retrieval[-4:]) < 0.9 * np.mean(retrieval[:4])
    assert loss(small_run / "pretrain", "loss")[-1] < loss(small_run / "pretrain", "loss")[0]


def test_evaluate_and_plot(small_data: Path, small_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--recipe", str(small_data / "recipe.toml"), "--output", str(small_run)]
    assert main(["evaluate", *where]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("BM25", "untrained", "pretrain", "sft", "weak", "nDCG@10"))
    scores = json.loads((small_run / "scores.json").read_text())
    assert scores["BM25"]["HeadingToSection"]["metrics"]["ndcg_at_10"] > 0.5
    assert main(["plot", *where]) == 0
    assert (small_run / "summary.png").read_bytes().startswith(b"\x89PNG")


def test_demo_goes_through_everything_and_keeps_it(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["demo", "--recipe", str(small_data / "recipe.toml"), "--output", str(tmp_path)]
    assert main(arguments) == 0
    assert "SentenceTransformer" in capsys.readouterr().out
    stages = ["pretrain", "sft", "weak", "supervised"]
    assert list(json.loads((tmp_path / "scores.json").read_text())) == ["BM25", "untrained", *stages]
    assert (tmp_path / "summary.png").is_file()
    models = [tmp_path / stage / "model" / "model.safetensors" for stage in stages]
    recipe = load_recipe(str(tmp_path))
    assert (recipe.folder, recipe.supervised.num_negatives) == (tmp_path, 3)
    written = [model.stat().st_mtime_ns for model in models]
    assert main([*arguments, "--resume"]) == 0
    assert [model.stat().st_mtime_ns for model in models] == written


def test_bad_command_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--weak.steps"]) == 2
    assert "--weak.steps: needs a value" in capsys.readouterr().err
    assert main(["demo", "stray"]) == 2
    assert "'stray': is no option" in capsys.readouterr().err
    assert main(["weak", "--recipe", "conan-1.4b", "--output", str(tmp_path)]) == 2
    assert "weak.sources: is empty" in capsys.readouterr().err
    assert main(["tokenizer", "--output", f"{os.devnull}/x"]) == 2
    assert os.devnull in capsys.readouterr().err
