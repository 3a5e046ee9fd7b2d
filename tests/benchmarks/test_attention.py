"""The attention suite of the benchmarks, on a CPU: its truth, and that a wrong implementation gets no time."""

import math

import pytest
import torch

from benchmarks import suite as core
from benchmarks import timing
from benchmarks.attention.cases import Case
from benchmarks.attention.exact import float64_attention
from benchmarks.attention.implementation import AttentionImplementation
from benchmarks.attention.peers import eager, ours, sdpa
from benchmarks.attention.shape import ALPHA, Shape, shapes
from benchmarks.attention.suite import SUITE
from benchmarks.floors import Ceilings
from benchmarks.peer import NotRun, WrongResult, leaves_out
from conan_fast import reference, soft_mask_attention

CPU = torch.device("cpu")
SMALL = Shape(batch=2, length=48, head_dim=16, heads=4, kv_heads=2, element_size=4)
OURS, EAGER = ours.IMPLEMENTATIONS[0], eager.IMPLEMENTATIONS[0]
ON_A_CPU = (*ours.IMPLEMENTATIONS, EAGER, *(i for i in sdpa.IMPLEMENTATIONS if "flash" in i.name))


def planted(attend):
    return AttentionImplementation(name="planted", role="rival", about="", build=lambda _shape, _device: attend)


WRONG = {
    "alpha": planted(lambda q, k, v: soft_mask_attention(q, k, v, ALPHA + 0.1)),
    "dv of the last head": planted(
        lambda q, k, v: soft_mask_attention(q, k, torch.cat([v[:, :, :-1], v[:, :, -1:].detach()], 2), ALPHA)
    ),
    "NaN": planted(lambda q, k, v: soft_mask_attention(q, k, v, ALPHA) * torch.nan),
}


@pytest.mark.parametrize("implementation", ON_A_CPU, ids=lambda i: i.name)
def test_peers_agree_with_float64(implementation: AttentionImplementation) -> None:
    prepared = Case(SMALL, CPU).prepare(implementation)
    assert set(prepared.errors) == {"out", "dq", "dk", "dv"} and max(prepared.errors.values()) < 1e-5
    for part in SUITE.parts:
        step = prepared.step(part)
        for _ in range(4):  # three sets of inputs take turns
            step()


@pytest.mark.parametrize("name", WRONG)
def test_wrong_result_is_named_and_has_no_time(name: str) -> None:
    with pytest.raises(WrongResult, match="is off by"):
        Case(SMALL, CPU).prepare(WRONG[name])
    rows: list[core.Row] = []
    suite = core.Suite("attention", SUITE.parts, lambda _: [SMALL], Case, (OURS, WRONG[name]))
    core.run_shape(suite, SMALL, CPU, timing.Clock(CPU), core.Progress(rows.append))
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


def test_left_out_where_memory_is_short_or_a_kernel_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = 2 * 32 * 32768**2  # bytes, bfloat16, one sequence
    assert EAGER.bytes_needed(Shape(1, 32768, 112)) > 4 * scores > 100 * OURS.bytes_needed(Shape(1, 32768, 112))
    monkeypatch.setattr(timing, "free_bytes", lambda _: 1000)
    with pytest.raises(NotRun, match="needs about"), leaves_out(CPU, EAGER.bytes_needed(SMALL), ours=False):
        pass
    cudnn = next(i for i in sdpa.IMPLEMENTATIONS if i.name == "sdpa_cudnn_unmasked")
    with pytest.raises(NotRun, match="CUDA kernel only"):
        Case(SMALL, CPU).prepare(cudnn)


def test_order_and_batch_of_shapes() -> None:
    gpu = shapes("cuda")
    assert [(s.length, s.head_dim) for s in gpu[:4]] == [(8192, 112), (4096, 112), (16384, 112), (8192, 128)]
    assert {s.batch * s.length for s in gpu} == {16384, 32768} and len(gpu) == 14
    assert shapes("cpu")[0].length == 512


def test_work_and_floor() -> None:
    shape, ceilings = Shape(2, 8192, 112), Ceilings("bfloat16", 8e14, 4e12, 2e-6)
    forward, backward = (shape.work(part) for part in SUITE.parts)
    assert forward.flop == 4 * 2 * 32 * 8192**2 * 112 and backward.flop == 2.5 * forward.flop
    assert forward.bytes == 2 * 8192 * 112 * 2 * (32 + 32 + 8 + 8) and backward.bytes == 2 * forward.bytes
    assert forward.seconds(ceilings) == forward.flop / 8e14
    assert Shape(1, 1, 112).work("forward").seconds(ceilings) == pytest.approx(112 * 160 / 4e12)
    assert math.isclose(forward.intensity, forward.flop / forward.bytes)
