"""A run stops and resumes to the same bits, and nothing is lost or silently overwritten."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support.paths import ROOT
from train.__main__ import main
from train.metrics import read_metrics

FOR_SUPERVISED = ("tokenizer", "weak", "mine")  # what the stage starts from


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
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


def assert_same_result(stage: Path, uninterrupted: Path) -> None:
    metrics = stage / "metrics.jsonl"
    assert metrics.read_bytes() == (uninterrupted / "metrics.jsonl").read_bytes()
    expected, got = (load_file(folder / "model/model.safetensors") for folder in (uninterrupted, stage))
    assert expected.keys() == got.keys()
    assert all(np.array_equal(expected[name], got[name]) for name in expected)
    # Negatives were replaced, before and after the interruptions.
    replaced = [line["replaced"] for line in read_metrics(metrics) if "replaced" in line]
    assert sum(share > 0 for share in replaced) >= 3


@pytest.mark.parametrize(
    "kills", [1, pytest.param(3, marks=pytest.mark.proof)], ids=["killed once", "killed three times"]
)
def test_killed_run_resumes_to_the_same_bits(
    kills: int, small_run: Path, copied_run: Callable[..., list[str]], tmp_path: Path
) -> None:
    arguments = ["supervised", *copied_run(*FOR_SUPERVISED)]
    steps = sorted(random.SystemRandom().sample(range(1, 23), kills))
    print(f"killed after steps {steps}")
    for i, step in enumerate(steps):
        process = start([*arguments, *["--resume"][:i]])
        kill_after(process, tmp_path / "supervised" / "metrics.jsonl", step, signal.SIGKILL)
    assert main([*arguments, "--resume"]) == 0
    assert_same_result(tmp_path / "supervised", small_run / "run" / "supervised")


def test_ctrl_c_saves_and_resume_continues_exactly(
    small_run: Path, copied_run: Callable[..., list[str]], tmp_path: Path
) -> None:
    arguments = ["supervised", *copied_run(*FOR_SUPERVISED)]
    process = start(arguments)
    kill_after(process, tmp_path / "supervised" / "metrics.jsonl", 7, signal.SIGINT)
    assert process.returncode == 130
    assert not (tmp_path / "supervised" / "model").exists()
    assert main([*arguments, "--resume"]) == 0
    assert_same_result(tmp_path / "supervised", small_run / "run" / "supervised")


def test_an_earlier_run_is_not_overwritten_by_accident(
    copied_run: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["weak", *copied_run("tokenizer", "sft", "weak")]
    before = (tmp_path / "weak/metrics.jsonl").read_bytes()
    assert main(arguments) == 2
    assert "--resume to continue it or --overwrite" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 0  # finished: nothing to do
    assert (tmp_path / "weak/metrics.jsonl").read_bytes() == before


def test_resume_with_another_recipe_is_refused(
    small_run: Path, copied_run: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["supervised", *copied_run(*FOR_SUPERVISED), "--resume", "--supervised.learning_rate=0.5"]
    shutil.copytree(small_run / "run" / "supervised" / "checkpoints", tmp_path / "supervised" / "checkpoints")
    assert main(arguments) == 2
    assert "other values of learning_rate" in capsys.readouterr().err
