"""The benchmark of a training step, on a CPU: its result, and that the stopwatch does not change the step."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import step, timing
from benchmarks.step_cases import STAGES, Shape, Trainer, loss_between, recipe_of

CPU = torch.device("cpu")
ARGUMENTS = ["--device=cpu", "--batch-size=3", "--tokens=6", "--steps=2"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Other tests may run beside these, and threads that wait for each other slow small work down."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return Trainer(recipe_of("tiny"), CPU)


def test_share_of_the_loss_is_in_the_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "step.json"
    assert step.main([*ARGUMENTS, f"--out={out}"]) == 3
    printed = capsys.readouterr().out
    assert "GPU FIGURES ARE MISSING" in printed
    result = json.loads(out.read_text())
    assert result["model"] == "tiny" and result["stopped"] is None
    assert [row["stage"] for row in result["rows"]] == list(STAGES)
    assert [row["tokens"] for row in result["rows"]] == [2 * 3 * 6, 9 * 3 * 6, 2 * 3 * 6]
    assert [len(row["dims"]) for row in result["rows"]] == [1, 4, 4]
    for row in result["rows"]:
        assert row["reason"] is None and 0 < row["share_of_loss"] < 1
        assert f"{row['share_of_loss']:.2%}" in printed
        assert all(time["rounds"] == 2 and time["low_ms"] > 0 for time in row["time"].values())
        assert row["tokens_per_s"] == pytest.approx(row["tokens"] / row["time"]["step"]["median_ms"] * 1e3)


@pytest.mark.parametrize("micro_batch_tokens", [10_000, 20], ids=["at once", "in parts"])
@pytest.mark.parametrize("stage", STAGES)
def test_the_stopwatch_leaves_gradients_as_they_are(trainer: Trainer, stage: str, micro_batch_tokens: int) -> None:
    def gradients() -> list[torch.Tensor]:
        made = STAGES[stage](trainer, Shape(3, 6, micro_batch_tokens))
        trainer.model.zero_grad()
        made.backward(trainer.model, 0)
        return [p.grad for p in trainer.model.parameters() if p.grad is not None]

    plain = gradients()
    spans: list[timing.Span] = []

    def span() -> timing.Span:
        spans.append(timing.Span(CPU))
        return spans[-1]

    with loss_between(span):
        timed = gradients()
    assert len(spans) == 1 and spans[0].seconds() > 0
    assert len(plain) == len(timed) > 10
    assert all(a.equal(b) for a, b in zip(plain, timed, strict=True))
    assert any(a.any() for a in plain)


def test_bad_arguments_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in ((["--model=none"], "no file"), (["--tokens=100000"], "at most"), (["--steps=-1"], "1")):
        with pytest.raises(SystemExit):
            step.main(["--device=cpu", *arguments])
        assert message in capsys.readouterr().err
