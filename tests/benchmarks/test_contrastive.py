"""The contrastive suite of the benchmarks, on a CPU: its truth, and that a wrong implementation gets no time."""

import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from benchmarks import rounds, timing
from benchmarks.contrastive.cases import (
    TEMPERATURE,
    Case,
    InfoNCEImplementation,
    Workload,
    all_candidates,
    by_autograd,
    cases,
    exact_gradients,
    matryoshka,
    on_request,
)
from benchmarks.contrastive.peers import IMPLEMENTATIONS, eager, ours, sentence_transformers, three_gemms
from benchmarks.roofline import info_nce_work
from benchmarks.suite import Implementation, NotRun, WrongResult, guarded, load_suite
from conan_fast import info_nce, reference

CPU = torch.device("cpu")
SUITE = load_suite("contrastive")
SMALL = Case(pairs=24, negatives=2, dim=16, dims=(4, 10, 16), element_size=4)
OURS, EAGER, GEMMS = ours.IMPLEMENTATIONS[0], eager.IMPLEMENTATIONS[0], three_gemms.IMPLEMENTATIONS[0]
ON_A_CPU = (  # without a compiler
    *ours.IMPLEMENTATIONS,
    EAGER,
    next(i for i in eager.IMPLEMENTATIONS if i.name == "eager_dim_by_dim"),
    *sentence_transformers.IMPLEMENTATIONS,
    *(i for i in IMPLEMENTATIONS if i.name == "torch_chunked" and hasattr(torch.nn, "LinearCrossEntropyOptions")),
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
    monkeypatch.setattr(rounds, "ROUNDS", 3)
    monkeypatch.setitem(rounds.SECONDS, "cpu", 0.0)


def rows_of(case: Case, *implementations: Implementation, slowest: float = 99.0) -> list[dict]:
    rows: list[dict] = []
    suite = replace(SUITE, implementations=implementations)
    rounds.run_case(suite, case, timing.Clock(CPU), rounds.Progress(rows.append, slowest=slowest))
    return rows


def planted(loss):
    def build(inputs, dims):
        return by_autograd(inputs, lambda *x: loss(dims, *x))

    return InfoNCEImplementation("planted", "rival", "", build)


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
def test_rows_of_a_case(dims: tuple[int, ...], negatives: int) -> None:
    case = replace(SMALL, dims=dims, negatives=negatives)
    rows = rows_of(case, OURS, GEMMS, *ON_A_CPU[1:])
    assert [row["implementation"] for row in rows] == ["ours", "three_gemms", *(i.name for i in ON_A_CPU[1:])]
    not_run = {row["implementation"]: row["reason"] for row in rows if row["reason"]}
    assert not_run == ({} if len(dims) > 1 else {"ours_once_per_dim": "with one dim it is the same as ours"})
    assert not any(row["wrong"] for row in rows)
    for row in rows:
        assert row["case"]["candidates"] == 24 * (1 + negatives) and row["case"]["our_backend"] == "torch"
        if row["reason"] is None:
            (part,) = row["parts"].values()
            assert 0 < part["timing"]["low_ms"] <= part["timing"]["median_ms"] <= part["timing"]["high_ms"]
            assert part["flop"] == 6 * 24 * 24 * (1 + negatives) * 16
            inputs = {"queries", "positives"} | ({"negatives"} if negatives else set())
            assert set(row["relative_errors"]) == (set() if row["role"] == "gemms" else inputs)


@pytest.mark.parametrize("implementation", ON_A_CPU, ids=lambda i: i.name)
def test_peers_agree_with_the_exact_gradients(implementation: InfoNCEImplementation) -> None:
    checked = Workload(SMALL, CPU).check(implementation)
    assert set(checked.errors) == {"queries", "positives", "negatives"} and max(checked.errors.values()) < 1e-5
    step = checked.step("both")
    for _ in range(4):  # three sets of inputs take turns
        step()


@pytest.mark.parametrize("name", WRONG)
def test_wrong_peer_is_named_and_has_no_time(name: str) -> None:
    with pytest.raises(WrongResult, match="gradient of the"):
        Workload(SMALL, CPU).check(WRONG[name])
    mine, gemms, wrong = rows_of(SMALL, OURS, GEMMS, WRONG[name])
    assert wrong["implementation"] == "planted" and wrong["wrong"] and "parts" not in wrong
    assert wrong["reason"].startswith("the gradient of the")
    assert all(row["parts"]["both"]["timing"]["median_ms"] > 0 for row in (mine, gemms))


@pytest.mark.parametrize("implementation", ON_A_CPU, ids=lambda i: i.name)
def test_bfloat16_tolerances_hold(implementation: InfoNCEImplementation) -> None:
    workload = Workload(replace(SMALL, dim=256, dims=(64, 256)), CPU, torch.bfloat16)
    errors = workload.check(implementation).errors
    assert max(errors.values()) > 1e-4  # bfloat16 indeed


@pytest.mark.parametrize("negatives", [0, 3])
def test_exact_gradients_are_those_of_the_reference(negatives: int) -> None:
    torch.manual_seed(0)
    sizes = [(13, 8), (13, 8), *([(13, negatives, 8)] if negatives else [])]
    inputs = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes]
    loss = reference.info_nce(*inputs, temperature=TEMPERATURE, dims=[3, 8]).loss
    want_queries, *want = torch.autograd.grad(loss, inputs)
    candidates = all_candidates(*(x.detach() for x in inputs[1:]))
    rows, columns = torch.tensor([0, 5, 12]), torch.tensor([1, 12, len(candidates) - 1])
    got = exact_gradients(
        inputs[0].detach(), candidates, [3, 8], rows, columns, torch.float64, block_bytes=8 * len(candidates) * 2
    )
    torch.testing.assert_close(got[0], want_queries[rows], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(got[1], all_candidates(*want)[columns], rtol=1e-10, atol=1e-12)


def test_three_gemms_go_by_rows_if_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = Workload(SMALL, CPU).inputs[0]
    monkeypatch.setattr(timing, "free_bytes", lambda _: 4 * (2 * 4 * 72) * 10)  # ten of the 24 rows
    torch.manual_seed(0)
    step = three_gemms.three_gemms(inputs, ())
    torch.manual_seed(0)
    given = torch.randn(10, 72)
    for _ in range(2):
        step.run()
    grad = torch.cat([given, given, given[:4]])
    queries, *others = (x.detach() for x in inputs)
    got_queries, got_candidates = step.gradients()
    torch.testing.assert_close(got_queries, grad @ all_candidates(*others))
    torch.testing.assert_close(got_candidates, grad.T @ queries)


def test_absent_slow_or_too_large_peers_are_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "sentence_transformers", None)
        _, *rows = rows_of(SMALL, OURS, *sentence_transformers.IMPLEMENTATIONS)
    for absent in rows:  # also ours for sentence-transformers
        assert absent["reason"].startswith("is not installed: ") and not absent["wrong"] and "parts" not in absent
    (slow,) = rows_of(SMALL, EAGER, slowest=0.0)
    assert slow["reason"].startswith("takes ") and not slow["wrong"] and "parts" not in slow
    with monkeypatch.context() as patch, pytest.raises(NotRun, match="needs about"):
        patch.setattr(timing, "free_bytes", lambda _: 1000)
        with guarded(CPU, EAGER, EAGER.bytes_needed(SMALL)):
            pass
    large = Case(65536, 7, 3584, matryoshka(3584))
    scores = 2 * 65536 * 65536 * 8  # bytes, bfloat16
    assert EAGER.bytes_needed(large) > 8 * scores > 8 * OURS.bytes_needed(large)


def test_order_of_cases() -> None:
    gpu = cases("cuda")
    paper = (256, 512, 1024, 1536, 2048, 3072, 3584)
    assert gpu[:2] == [Case(16384, 0, 3584, paper), Case(16384, 7, 3584, paper)]
    assert len(set(gpu)) == 32 and {len(case.dims) for case in gpu} == {1, 7}
    assert gpu[-1].pairs == 1024 and gpu[-1].dims == (1024,)
    on_a_cpu = cases("cpu")
    assert on_a_cpu[0] == Case(1024, 0, 1024, matryoshka(1024), 4) and {s.element_size for s in on_a_cpu} == {4}
    minilm = [Case(2048, 0, 384, (64, 128, 256, 384), 4), Case(2048, 0, 384, (384,), 4)]
    assert on_request("cpu") == [*minilm, Case(8192, 7, 1024, matryoshka(1024), 4)]
    assert on_request("cuda") == [replace(case, element_size=2) for case in minilm]


def test_work_is_that_of_one_pass_whatever_the_dims() -> None:
    case = Case(64, 7, 32, (8, 32))
    assert case.work() == replace(case, dims=(32,)).work("both")
    assert case.work() == info_nce_work(pairs=64, candidates=512, dim=32, element_size=2)
    assert case.work().flop == 3 * 2 * 64 * 512 * 32
