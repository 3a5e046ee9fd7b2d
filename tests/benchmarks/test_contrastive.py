"""The contrastive suite of the benchmarks, on a CPU: its truth, and that a wrong implementation gets no time."""

import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from benchmarks import suite as core
from benchmarks import timing
from benchmarks.contrastive import cpu
from benchmarks.contrastive.cases import Case
from benchmarks.contrastive.exact import exact_gradients
from benchmarks.contrastive.implementation import ContrastiveImplementation, all_candidates, with_autograd
from benchmarks.contrastive.peers import eager, ours, sentence_transformers, three_products, torch_chunked
from benchmarks.contrastive.shape import Shape, matryoshka, shapes
from benchmarks.contrastive.suite import SUITE
from benchmarks.floors import info_nce_work
from benchmarks.peer import Implementation, NotRun, WrongResult, leaves_out
from conan_fast import info_nce, reference

CPU = torch.device("cpu")
SMALL = Shape(pairs=24, negatives=2, dim=16, dims=(4, 10, 16), element_size=4)
OURS, EAGER, FLOOR = ours.IMPLEMENTATIONS[0], eager.IMPLEMENTATIONS[0], three_products.IMPLEMENTATIONS[0]
ON_A_CPU = (  # without a compiler
    *ours.IMPLEMENTATIONS,
    EAGER,
    *sentence_transformers.IMPLEMENTATIONS,
    *(torch_chunked.IMPLEMENTATIONS if hasattr(torch.nn, "LinearCrossEntropyOptions") else ()),
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Other tests may run beside these, and threads that wait for each other slow small work down."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "ROUNDS", 3)
    monkeypatch.setitem(core.SECONDS, "cpu", 0.0)


def rows_of(shape: Shape, *implementations: Implementation) -> list[core.Row]:
    rows: list[core.Row] = []
    suite = replace(SUITE, implementations=implementations)
    core.run_shape(suite, shape, CPU, timing.Clock(CPU), core.Progress(rows.append))
    return rows


def planted(loss):
    def build(inputs, dims):
        return with_autograd(inputs, lambda *x: loss(dims, *x))

    return ContrastiveImplementation(name="planted", role="rival", about="", build=build)


def without_last_negative(dims, q, p, n):
    return info_nce(q, p, torch.cat([n[:-1], n[-1:].detach()]), dims=dims).loss


WRONG = {
    "temperature": planted(lambda dims, q, p, n: info_nce(q, p, n, dims=dims, temperature=0.051).loss),
    "a dim is missing": planted(lambda dims, q, p, n: info_nce(q, p, n, dims=dims[:-1] or [8]).loss),
    "private negatives": planted(lambda dims, q, p, n: info_nce(q, p, n, dims=dims, negative_scope="private").loss),
    "gradient of the last negatives": planted(without_last_negative),
    "NaN": planted(lambda dims, q, p, n: info_nce(q, p, n, dims=dims).loss * torch.nan),
}


@pytest.mark.parametrize("negatives", [0, 2])
@pytest.mark.parametrize("dims", [matryoshka(16), (16,)], ids=["seven dims", "one dim"])
def test_rows_of_a_shape(dims: tuple[int, ...], negatives: int) -> None:
    shape = replace(SMALL, dims=dims, negatives=negatives)
    rows = rows_of(shape, OURS, FLOOR, *ON_A_CPU[1:])
    assert [row["implementation"] for row in rows] == ["ours", "three_products", *(i.name for i in ON_A_CPU[1:])]
    left_out = {row["implementation"]: row["reason"] for row in rows if row["reason"]}
    assert left_out == ({} if len(dims) > 1 else {"ours_once_per_dim": "with one dim it is the same as ours"})
    assert not any(row["wrong"] for row in rows)
    for row in rows:
        assert row["case"]["candidates"] == 24 * (1 + negatives) and row["case"]["our_backend"] == "torch"
        if row["reason"] is None:
            (part,) = row["parts"].values()
            assert 0 < part["timing"]["low_ms"] <= part["timing"]["median_ms"] <= part["timing"]["high_ms"]
            assert part["flop"] == 6 * 24 * 24 * (1 + negatives) * 16
            inputs = {"queries", "positives"} | ({"negatives"} if negatives else set())
            assert set(row["relative_errors"]) == (set() if row["role"] == "floor" else inputs)


@pytest.mark.parametrize("implementation", ON_A_CPU, ids=lambda i: i.name)
def test_peers_agree_with_the_exact_gradients(implementation: ContrastiveImplementation) -> None:
    prepared = Case(SMALL, CPU).prepare(implementation)
    assert set(prepared.errors) == {"queries", "positives", "negatives"} and max(prepared.errors.values()) < 1e-5
    step = prepared.step("both")
    for _ in range(4):  # three sets of inputs take turns
        step()


@pytest.mark.parametrize("name", WRONG)
def test_wrong_peer_is_named_and_has_no_time(name: str) -> None:
    with pytest.raises(WrongResult, match="gradient of the"):
        Case(SMALL, CPU).prepare(WRONG[name])
    mine, floor, wrong = rows_of(SMALL, OURS, FLOOR, WRONG[name])
    assert wrong["implementation"] == "planted" and wrong["wrong"] and "parts" not in wrong
    assert wrong["reason"].startswith("the gradient of the")
    assert all(row["parts"]["both"]["timing"]["median_ms"] > 0 for row in (mine, floor))


@pytest.mark.parametrize("implementation", ON_A_CPU, ids=lambda i: i.name)
def test_bfloat16_tolerances_hold(implementation: ContrastiveImplementation) -> None:
    case = Case(replace(SMALL, dim=256, dims=(64, 256)), CPU, torch.bfloat16)
    errors = case.prepare(implementation).errors
    assert max(errors.values()) > 1e-4  # bfloat16 indeed


@pytest.mark.parametrize("negatives", [0, 3])
def test_exact_gradients_are_those_of_the_reference(negatives: int) -> None:
    torch.manual_seed(0)
    sizes = [(13, 8), (13, 8), *([(13, negatives, 8)] if negatives else [])]
    inputs = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes]
    loss = reference.info_nce(*inputs, temperature=0.1, dims=[3, 8]).loss
    want_queries, *want = torch.autograd.grad(loss, inputs)
    candidates = all_candidates(*(x.detach() for x in inputs[1:]))
    rows, columns = torch.tensor([0, 5, 12]), torch.tensor([1, 12, len(candidates) - 1])
    got = exact_gradients(
        inputs[0].detach(), candidates, [3, 8], 0.1, rows, columns, torch.float64, block_bytes=8 * len(candidates) * 2
    )
    torch.testing.assert_close(got[0], want_queries[rows], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(got[1], all_candidates(*want)[columns], rtol=1e-10, atol=1e-12)


def test_three_products_go_by_rows_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = Case(SMALL, CPU).inputs[0]
    monkeypatch.setattr(timing, "free_bytes", lambda _: 4 * (2 * 4 * 72) * 10)  # ten of the 24 rows
    torch.manual_seed(0)
    work = three_products.three_products(inputs, ())
    torch.manual_seed(0)
    given = torch.randn(10, 72)
    for _ in range(2):
        work.step()
    grad = torch.cat([given, given, given[:4]])
    queries, *others = (x.detach() for x in inputs)
    got_queries, got_candidates = work.gradients()
    torch.testing.assert_close(got_queries, grad @ all_candidates(*others))
    torch.testing.assert_close(got_candidates, grad.T @ queries)


def test_absent_slow_or_too_large_peers_are_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    st_mnrl = sentence_transformers.IMPLEMENTATIONS[0]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "sentence_transformers", None)
        _, absent = rows_of(SMALL, OURS, st_mnrl)
    assert absent["reason"].startswith("is not installed: ") and not absent["wrong"] and "parts" not in absent
    with monkeypatch.context() as patch:
        patch.setitem(core.SLOWEST, "cpu", 0.0)
        (slow,) = rows_of(SMALL, EAGER)
    assert slow["reason"].startswith("takes ") and not slow["wrong"] and "parts" not in slow
    with monkeypatch.context() as patch, pytest.raises(NotRun, match="needs about"):
        patch.setattr(timing, "free_bytes", lambda _: 1000)
        with leaves_out(CPU, EAGER.bytes_needed(SMALL), ours=False):
            pass
    large = shapes("cuda", [65536], [7], [3584])[0]
    scores = 2 * 65536 * 65536 * 8  # bytes, bfloat16
    assert EAGER.bytes_needed(large) > 8 * scores > 8 * OURS.bytes_needed(large)


def test_order_of_shapes() -> None:
    gpu = shapes("cuda")
    paper = (256, 512, 1024, 1536, 2048, 3072, 3584)
    assert gpu[:2] == [Shape(16384, 0, 3584, paper), Shape(16384, 7, 3584, paper)]
    assert len(set(gpu)) == 32 and {len(shape.dims) for shape in gpu} == {1, 7}
    assert gpu[-1].pairs == 1024 and gpu[-1].dims == (1024,)
    on_a_cpu = shapes("cpu")
    assert on_a_cpu[0] == Shape(1024, 0, 1024, matryoshka(1024), 4) and {s.element_size for s in on_a_cpu} == {4}


def test_work_is_that_of_one_pass_whatever_the_dims() -> None:
    shape = Shape(64, 7, 32, (8, 32))
    assert shape.work() == replace(shape, dims=(32,)).work("both")
    assert shape.work() == info_nce_work(pairs=64, candidates=512, dim=32, element_size=2)
    assert shape.work().flop == 3 * 2 * 64 * 512 * 32


def test_the_cpu_comparison_prints_times_and_memory(capfd: pytest.CaptureFixture[str]) -> None:
    assert cpu.main(["--pairs", "48", "--negatives", "1"]) == 0
    printed = capfd.readouterr().out
    one_pass, theirs = (next(line for line in printed.splitlines() if line.startswith(way)) for way in cpu.WAYS)
    assert float(one_pass.split()[-1]) == pytest.approx(float(theirs.split()[-1]), abs=1e-3)
    assert "times as fast" in printed
