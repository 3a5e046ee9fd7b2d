"""The benchmark of InfoNCE, on a CPU: its result file, its truth, and that a wrong implementation gets no time."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import contrastive, contrastive_cases, contrastive_cpu, contrastive_losses, timing
from benchmarks.contrastive_cases import FLOOR, IMPLEMENTATIONS, OURS, Case, Implementation, Shape
from benchmarks.contrastive_exact import exact_gradients
from benchmarks.contrastive_losses import with_autograd
from benchmarks.runner import NotRun, WrongResult
from conan_fast import info_nce, reference

CPU = torch.device("cpu")
SMALL = Shape(24, 2, 16, (4, 10, 16))
ARGUMENTS = ["--device=cpu", "--pairs", "24", "--dims", "16", "--negatives", "0", "2"]
NAMED = {implementation.name: implementation for implementation in IMPLEMENTATIONS}
WITHOUT_COMPILER = [name for name in NAMED if name not in ("three_products", "eager_compiled")]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Other tests may run beside these, and threads that wait for each other slow small work down."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def planted(loss):
    return Implementation("planted", lambda inputs, dims: with_autograd(inputs, lambda *x: loss(dims, *x)))


def without_last_negative(dims, q, p, n):
    return info_nce(q, p, torch.cat([n[:-1], n[-1:].detach()]), dims=dims).loss


WRONG = {
    "temperature": planted(lambda dims, q, p, n: info_nce(q, p, n, dims=dims, temperature=0.051).loss),
    "a dim is missing": planted(lambda dims, q, p, n: info_nce(q, p, n, dims=dims[:-1] or [8]).loss),
    "private negatives": planted(lambda dims, q, p, n: info_nce(q, p, n, dims=dims, negative_scope="private").loss),
    "gradient of the last negatives": planted(without_last_negative),
    "NaN": planted(lambda dims, q, p, n: info_nce(q, p, n, dims=dims).loss * torch.nan),
}


def test_result_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results" / "contrastive.json"
    assert contrastive.main([*ARGUMENTS, f"--out={out}", "--only", *WITHOUT_COMPILER]) == 3
    assert "GPU FIGURES ARE MISSING" in capsys.readouterr().out
    result = json.loads(out.read_text())
    assert result["stopped"] is None and result["machine"]["torch"] == torch.__version__
    assert result["packages"]["sentence-transformers"]
    rows = result["rows"]
    seven, one = [2, 4, 6, 8, 10, 14, 16], [16]
    assert [(row["dims"], row["negatives"], row["implementation"]) for row in rows] == [
        (dims, negatives, name)
        for dims in (seven, one)
        for negatives in (0, 2)
        for name in ("three_products", *WITHOUT_COMPILER)
    ]
    left_out = [(row["implementation"], row["dims"]) for row in rows if row["reason"]]
    assert left_out == [("ours_once_per_dim", one)] * 2 and not any(row["wrong"] for row in rows)
    for row in rows:
        if row["reason"] is None:
            floor = next(r for r in rows if r["dims"] == row["dims"] and r["negatives"] == row["negatives"])
            time = row["time"]
            assert 0 < time["low_ms"] <= time["median_ms"] <= time["high_ms"]
            assert row["share_of_floor"] == pytest.approx(floor["time"]["median_ms"] / time["median_ms"])
            flop = 6 * 24 * 24 * (1 + row["negatives"]) * 16
            assert row["tflop_per_s"] == pytest.approx(flop / time["median_ms"] / 1e9)
            inputs = {"queries", "positives"} | ({"negatives"} if row["negatives"] else set())
            assert set(row["relative_errors"]) == (set() if row["implementation"] == FLOOR.name else inputs)
            if row["implementation"] == "ours":
                assert row["backend"] == "torch"


@pytest.mark.parametrize("name", WRONG)
def test_wrong_peer_is_named_and_has_no_time(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    with pytest.raises(WrongResult, match="gradient of the"):
        Case(SMALL, CPU).prepare(WRONG[name])
    monkeypatch.setattr(contrastive, "IMPLEMENTATIONS", (FLOOR, WRONG[name], OURS[0]))
    out = tmp_path / "contrastive.json"
    assert contrastive.main(["--device=cpu", "--pairs", "24", "--dims", "16", "--negatives", "2", f"--out={out}"]) == 1
    rows = json.loads(out.read_text())["rows"]
    wrong, ours = rows[1:3]
    assert wrong["implementation"] == "planted" and wrong["wrong"] and "time" not in wrong
    assert ours["time"]["median_ms"] > 0
    assert "planted  WRONG: the gradient of the" in capsys.readouterr().out


def test_bfloat16_tolerances_hold() -> None:
    case = Case(replace(SMALL, dim=256, dims=(64, 256)), CPU, torch.bfloat16)
    for name in WITHOUT_COMPILER:
        assert case.prepare(NAMED[name]).errors


@pytest.mark.parametrize("negatives", [0, 3])
def test_exact_gradients_are_those_of_the_reference(negatives: int) -> None:
    torch.manual_seed(0)
    sizes = [(13, 8), (13, 8), *([(13, negatives, 8)] if negatives else [])]
    inputs = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes]
    loss = reference.info_nce(*inputs, temperature=0.1, dims=[3, 8]).loss
    want_queries, *want = torch.autograd.grad(loss, inputs)
    candidates = contrastive_losses.all_candidates(*(x.detach() for x in inputs[1:]))
    rows, columns = torch.tensor([0, 5, 12]), torch.tensor([1, 12, len(candidates) - 1])
    got = exact_gradients(
        inputs[0].detach(), candidates, [3, 8], 0.1, rows, columns, torch.float64, block_bytes=8 * len(candidates) * 2
    )
    torch.testing.assert_close(got[0], want_queries[rows], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(got[1], contrastive_losses.all_candidates(*want)[columns], rtol=1e-10, atol=1e-12)


def test_three_products_go_by_rows_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = Case(SMALL, CPU).inputs
    monkeypatch.setattr(timing, "free_bytes", lambda _: 4 * (2 * 4 * 72) * 10)  # ten of the 24 rows
    torch.manual_seed(0)
    work = contrastive_losses.three_products(inputs, ())
    torch.manual_seed(0)
    given = torch.randn(10, 72)
    for _ in range(2):
        work.step()
    grad = torch.cat([given, given, given[:4]])
    queries, *others = (x.detach() for x in inputs)
    got_queries, got_candidates = work.gradients()
    torch.testing.assert_close(got_queries, grad @ contrastive_losses.all_candidates(*others))
    torch.testing.assert_close(got_candidates, grad.T @ queries)


def test_absent_or_too_large_peers_are_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(SMALL, CPU)
    with monkeypatch.context() as patch, pytest.raises(NotRun, match="sentence-transformers does not load"):
        patch.setitem(sys.modules, "sentence_transformers", None)
        case.prepare(NAMED["st_mnrl"])
    with monkeypatch.context() as patch, pytest.raises(NotRun, match="needs about"):
        patch.setattr(timing, "free_bytes", lambda _: 1000)
        case.prepare(NAMED["eager"])
    with monkeypatch.context() as patch, pytest.raises(NotRun, match="takes"):
        patch.setattr(contrastive_cases, "MAX_SECONDS", 0.0)
        case.prepare(NAMED["eager"])
    large = contrastive.shapes("cuda", [65536], [7], [3584])[0]
    scores = 2 * 65536 * 65536 * 8  # bytes, bfloat16
    assert NAMED["eager"].bytes_needed(large, 2) > 8 * scores > 8 * OURS[0].bytes_needed(large, 2)


def test_stopped_run_is_a_smaller_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_):
        raise KeyboardInterrupt

    out = tmp_path / "contrastive.json"
    assert contrastive.main([*ARGUMENTS, f"--out={out}", "--budget-minutes=0"]) == 3
    result = json.loads(out.read_text())
    assert result["rows"] == [] and "budget" in result["stopped"]
    monkeypatch.setattr(contrastive, "IMPLEMENTATIONS", (FLOOR, Implementation("slow", interrupt)))
    assert contrastive.main([*ARGUMENTS, f"--out={out}"]) == 130
    result = json.loads(out.read_text())
    assert result["stopped"] == "Ctrl-C" and [row["implementation"] for row in result["rows"]] == [FLOOR.name]


def test_order_of_gpu_shapes() -> None:
    shapes = contrastive.shapes("cuda")
    paper = (256, 512, 1024, 1536, 2048, 3072, 3584)
    assert shapes[:2] == [Shape(16384, 0, 3584, paper), Shape(16384, 7, 3584, paper)]
    assert len(set(shapes)) == 32 and {len(shape.dims) for shape in shapes} == {1, 7}
    assert shapes[-1].pairs == 1024 and shapes[-1].dims == (1024,)


def test_the_cpu_comparison_prints_times_and_memory(capfd: pytest.CaptureFixture[str]) -> None:
    assert contrastive_cpu.main(["--pairs", "48", "--negatives", "1"]) == 0
    printed = capfd.readouterr().out
    ours, theirs = (next(line for line in printed.splitlines() if line.startswith(way)) for way in contrastive_cpu.WAYS)
    assert float(ours.split()[-1]) == pytest.approx(float(theirs.split()[-1]), abs=1e-3)
    assert "times as fast" in printed
