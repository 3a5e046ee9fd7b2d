"""The attention suite of the benchmarks, on a CPU: its truth, and that a wrong implementation gets no time."""

import math
from dataclasses import replace

import pytest
import torch

from benchmarks import rounds, timing
from benchmarks.attention.cases import (
    ALPHA,
    AttentionImplementation,
    Case,
    Workload,
    cases,
    float64_attention,
    on_request,
)
from benchmarks.attention.peers import eager, ours, sdpa
from benchmarks.roofline import Ceilings
from benchmarks.suite import NotRun, WrongResult, guarded, load_suite
from conan_fast import reference, soft_mask_attention

CPU = torch.device("cpu")
SMALL = Case(batch=2, length=48, head_dim=16, heads=4, kv_heads=2, element_size=4)
PADDED = next(i for i in sdpa.IMPLEMENTATIONS if i.name == "sdpa_padded")
OURS, EAGER = ours.IMPLEMENTATIONS[0], eager.IMPLEMENTATIONS[0]
PACKED = replace(SMALL, batch=5, shortest=3)
SUITE = load_suite("attention")
ON_A_CPU = (*ours.IMPLEMENTATIONS, EAGER, *(i for i in sdpa.IMPLEMENTATIONS if "flash" in i.name))


def planted(attend):
    return AttentionImplementation("planted", "rival", "", lambda _case, _device: attend)


WRONG = {
    "alpha": planted(lambda q, k, v: soft_mask_attention(q, k, v, ALPHA + 0.1)),
    "dv of the last head": planted(
        lambda q, k, v: soft_mask_attention(q, k, torch.cat([v[:, :, :-1], v[:, :, -1:].detach()], 2), ALPHA)
    ),
    "NaN": planted(lambda q, k, v: soft_mask_attention(q, k, v, ALPHA) * torch.nan),
}


@pytest.mark.parametrize("implementation", ON_A_CPU, ids=lambda i: i.name)
def test_peers_agree_with_float64(implementation: AttentionImplementation) -> None:
    checked = Workload(SMALL, CPU).check(implementation)
    assert set(checked.errors) == {"out", "dq", "dk", "dv"} and max(checked.errors.values()) < 1e-5
    for part in SUITE.parts:
        step = checked.step(part)
        for _ in range(4):  # three sets of inputs take turns
            step()


@pytest.mark.parametrize("implementation", [*ours.IMPLEMENTATIONS, PADDED], ids=lambda i: i.name)
def test_packed_batches_agree_with_float64(implementation: AttentionImplementation) -> None:
    assert PACKED.lengths == [3, 14, 25, 36, 48] and PACKED.work("forward").flop == 4 * 4 * 16 * sum(
        length**2 for length in PACKED.lengths
    )
    checked = Workload(PACKED, CPU).check(implementation)
    assert max(checked.errors.values()) < 1e-5
    for part in SUITE.parts:
        checked.step(part)()


def test_layouts_that_an_implementation_does_not_support_are_named() -> None:
    for case, implementation in ((PACKED, EAGER), (SMALL, PADDED)):
        with pytest.raises(NotRun, match=f"is not measured on a batch of {case.layout} sequences"):
            Workload(case, CPU).check(implementation)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_result_is_named_and_has_no_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "ROUNDS", 2)
    monkeypatch.setitem(rounds.SECONDS, "cpu", 0.0)
    with pytest.raises(WrongResult, match="is off by"):
        Workload(SMALL, CPU).check(WRONG[name])
    rows: list[dict] = []
    suite = replace(SUITE, implementations=(OURS, WRONG[name]))
    rounds.run_case(suite, SMALL, timing.Clock(CPU), rounds.Progress(rows.append))
    mine, wrong = rows
    assert wrong["implementation"] == "planted" and wrong["wrong"] and "parts" not in wrong
    assert mine["parts"]["forward"]["timing"]["median_ms"] > 0


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


def test_skipped_if_memory_is_short_or_a_kernel_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = 2 * 32 * 32768**2  # bytes, bfloat16, one sequence
    assert EAGER.bytes_needed(Case(1, 32768, 112)) > 4 * scores > 100 * OURS.bytes_needed(Case(1, 32768, 112))
    monkeypatch.setattr(timing, "free_bytes", lambda _: 1000)
    with pytest.raises(NotRun, match="needs about"), guarded(CPU, EAGER, EAGER.bytes_needed(SMALL)):
        pass
    cudnn = next(i for i in sdpa.IMPLEMENTATIONS if i.name == "sdpa_cudnn_unmasked")
    with pytest.raises(NotRun, match="CUDA kernel only"):
        Workload(SMALL, CPU).check(cudnn)


def test_order_and_batch_of_cases() -> None:
    gpu = cases("cuda")
    assert [(s.length, s.head_dim) for s in gpu[:4]] == [(8192, 112), (4096, 112), (16384, 112), (8192, 128)]
    assert {s.batch * s.length for s in gpu} == {16384, 32768} and len(gpu) == 14
    assert cases("cpu")[0].length == 512
    (packed,) = on_request("cpu")
    assert packed.lengths[0] == 5 and packed.lengths[-1] == 128 and len(packed.lengths) == 256


def test_work_and_roofline_time() -> None:
    case, ceilings = Case(2, 8192, 112), Ceilings("bfloat16", 8e14, 4e12, 2e-6)
    forward, backward = (case.work(part) for part in SUITE.parts)
    assert forward.flop == 4 * 2 * 32 * 8192**2 * 112 and backward.flop == 2.5 * forward.flop
    assert forward.bytes == 2 * 8192 * 112 * 2 * (32 + 32 + 8 + 8) and backward.bytes == 2 * forward.bytes
    assert forward.seconds(ceilings) == forward.flop / 8e14
    assert Case(1, 1, 112).work("forward").seconds(ceilings) == pytest.approx(112 * 160 / 4e12)
    assert math.isclose(forward.intensity, forward.flop / forward.bytes)
