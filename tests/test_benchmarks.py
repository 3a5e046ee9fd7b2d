"""The benchmark of attention, on a CPU: its result file, its truth, and that a wrong implementation gets no time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import attention, timing
from benchmarks.attention_cases import (
    ALPHA,
    FLASH,
    IMPLEMENTATIONS,
    OURS,
    Case,
    Implementation,
    Shape,
    float64_attention,
)
from benchmarks.runner import NotRun, WrongResult
from conan_fast import reference, soft_mask_attention

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
SMALL = Shape(batch=2, length=48, head_dim=16, heads=4, kv_heads=2)


def planted(attend):
    return Implementation("planted", lambda _shape, _device: attend)


WRONG = {
    "alpha": planted(lambda q, k, v: soft_mask_attention(q, k, v, ALPHA + 0.1)),
    "dv of the last head": planted(
        lambda q, k, v: soft_mask_attention(q, k, torch.cat([v[:, :, :-1], v[:, :, -1:].detach()], 2), ALPHA)
    ),
    "NaN": planted(lambda q, k, v: soft_mask_attention(q, k, v, ALPHA) * torch.nan),
}


def test_command_on_cpu(tmp_path: Path) -> None:
    out = tmp_path / "results" / "attention.json"
    arguments = ["--device=cpu", "--lengths", "16", "33", "--head-dims", "16", f"--out={out}"]
    command = [sys.executable, "-m", "benchmarks.attention", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # other tests may run beside it
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "GPU FIGURES ARE MISSING" in done.stdout
    result = json.loads(out.read_text())
    assert result["stopped"] is None and result["our_backend"] == "torch"
    assert len(result["machine"]["csrc_sha256"]) == 64 and result["machine"]["torch"] == torch.__version__
    assert [(row["length"], row["implementation"]) for row in result["rows"]] == [
        (length, implementation.name) for length in (33, 16) for implementation in IMPLEMENTATIONS
    ]
    left_out = {row["implementation"] for row in result["rows"] if row["reason"]}
    assert left_out == {"sdpa_cudnn_unmasked"} and not any(row["wrong"] for row in result["rows"])
    for row in result["rows"]:
        if row["reason"] is None:
            pairs = row["batch"] * row["heads"] * row["length"] ** 2 * row["head_dim"]
            for direction, flop in (("forward", 4), ("backward", 10)):
                times = row[direction]
                assert 0 < times["low_ms"] <= times["median_ms"] <= times["high_ms"]
                assert times["tflop_per_s"] == pytest.approx(flop * pairs / times["median_ms"] / 1e9)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_result_has_no_time(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    with pytest.raises(WrongResult, match="is off by"):
        Case(SMALL, CPU).prepare(WRONG[name])
    monkeypatch.setattr(attention, "IMPLEMENTATIONS", (WRONG[name], OURS[0]))
    out = tmp_path / "attention.json"
    assert attention.main(["--device=cpu", "--lengths", "16", "--head-dims", "16", f"--out={out}"]) == 1
    wrong, ours = json.loads(out.read_text())["rows"]
    assert wrong["wrong"] and "forward" not in wrong and "backward" not in wrong
    assert ours["forward"]["median_ms"] > 0
    assert "WRONG: " in capsys.readouterr().out


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_blocks_of_float64_are_the_reference(alpha: float) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(1, 37, heads, 8, dtype=torch.float64, requires_grad=True) for heads in (3, 1, 1)]
    grad_out = torch.randn(1, 37, 3, 8, dtype=torch.float64)
    out = reference.soft_mask_attention(*inputs, alpha)
    want = [out, *torch.autograd.grad(out, inputs, grad_out)]
    q, k, v = (x.detach()[0] for x in inputs)
    got = float64_attention(q, k, v, grad_out[0], alpha=alpha, block_bytes=8 * 3 * 37 * 5)  # blocks of 5 rows
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b[0], rtol=1e-12, atol=1e-12)


def test_stopped_run_is_a_smaller_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_):
        raise KeyboardInterrupt

    out = tmp_path / "attention.json"
    arguments = ["--device=cpu", "--lengths", "16", "--head-dims", "16", f"--out={out}"]
    assert attention.main([*arguments, "--budget-minutes=0"]) == 3
    assert json.loads(out.read_text())["rows"] == []
    assert "budget" in json.loads(out.read_text())["stopped"]
    monkeypatch.setattr(attention, "IMPLEMENTATIONS", (FLASH, Implementation("slow", interrupt)))
    assert attention.main(arguments) == 130
    result = json.loads(out.read_text())
    assert result["stopped"] == "Ctrl-C" and [row["implementation"] for row in result["rows"]] == [FLASH.name]


def test_left_out_where_memory_or_time_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    eager = next(implementation for implementation in IMPLEMENTATIONS if implementation.name == "eager")
    scores = 2 * 32 * 32768**2  # bytes, bfloat16, one sequence
    assert eager.bytes_needed(Shape(1, 32768, 112)) > 4 * scores > 100 * OURS[0].bytes_needed(Shape(1, 32768, 112))
    case = Case(SMALL, CPU)
    with monkeypatch.context() as patch, pytest.raises(NotRun, match="needs about"):
        patch.setattr(timing, "free_bytes", lambda _: 1000)
        case.prepare(eager)
    with monkeypatch.context() as patch, pytest.raises(NotRun, match="takes"):
        patch.setattr("benchmarks.attention_cases.MAX_SECONDS", 0.0)
        case.prepare(eager)


def test_order_and_batch_of_gpu_shapes() -> None:
    shapes = attention.shapes("cuda")
    assert [(s.length, s.head_dim) for s in shapes[:2]] == [(8192, 112), (8192, 128)]
    assert {s.batch * s.length for s in shapes} == {16384, 32768} and len(shapes) == 14
