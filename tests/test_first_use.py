"""The check of kernels at their first use, by the kernels compiled for the CPU in place of a GPU's."""

import warnings

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from conan_fast import _backends, _first_use, _native, info_nce, soft_mask_attention
from conan_fast._self_test import Case
from conan_fast.attention import ops as attention
from conan_fast.contrastive import backend as contrastive

CUDA = torch.device("cuda")


@pytest.fixture
def checked(emulated, monkeypatch):
    """The emulated kernels are checked as a GPU's are. Yields the cases whose check has run."""
    monkeypatch.setattr(_first_use, "CHECKED_BACKENDS", {"emulated"})
    monkeypatch.setattr(_first_use, "_faults", {})
    monkeypatch.setattr(_backends, "_warned", set())
    monkeypatch.delenv(_first_use.VARIABLE, raising=False)
    examined, first_wrong = [], _first_use._first_wrong

    def counted(case):
        examined.append(case)
        return first_wrong(case)

    monkeypatch.setattr(_first_use, "_first_wrong", counted)
    return examined


def broken(function, place):
    """`function` with one element of one of its results changed."""

    def changed(*arguments):
        results = function(*arguments)
        tensors = [x for part in results for x in ([part] if isinstance(part, torch.Tensor) else part)]
        tensors[place].flatten()[-1:] += 1
        return results

    return changed


def attend(backend="emulated", head_dim=64, dtype=torch.bfloat16):
    q = torch.randn(1, 3, 1, head_dim, generator=torch.Generator().manual_seed(0)).to(dtype)
    return soft_mask_attention(q, q, q, 0.5, backend=backend)


def loss(backend="emulated", dtype=torch.float32):
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    return info_nce(x, x.flip(0), backend=backend).loss


def choose_as_on_a_gpu(monkeypatch, q):
    """What "auto" would take for a CUDA tensor like q, were the emulated kernels its own."""
    monkeypatch.setattr(_backends, "missing_reason", lambda backend: None)
    return _backends.choose("auto", CUDA, lambda _: attention.KERNELS["emulated"].unsupported(q))


def test_right_kernels_are_checked_once_for_each_dtype_and_head_dim(checked):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            attend()
            attend(head_dim=112)
            attend(dtype=torch.float16)
            loss()
            loss(dtype=torch.bfloat16)
    cpu = torch.device("cpu")
    assert checked == [
        Case("soft_mask_attention", "emulated", cpu, torch.bfloat16, 64),
        Case("soft_mask_attention", "emulated", cpu, torch.bfloat16, 112),
        Case("soft_mask_attention", "emulated", cpu, torch.float16, 64),
        Case("info_nce", "emulated", cpu, torch.float32),
        Case("info_nce", "emulated", cpu, torch.bfloat16),
    ]


@pytest.mark.parametrize(
    ("method", "place", "name"),
    [("forward", 0, "the output"), *(("backward", i, f"the gradient of {name}") for i, name in enumerate("qkv"))],
)
def test_a_wrong_attention_kernel_raises_by_name_and_falls_back_otherwise(checked, monkeypatch, method, place, name):
    kernels = attention.KERNELS["emulated"]
    monkeypatch.setattr(kernels, method, broken(getattr(kernels, method), place))
    expected = (
        r"the kernels of soft_mask_attention \(bfloat16, head_dim 64\) failed .* first use on cpu: padded: "
        rf"relative error of {name} \S+, expected at most 0.03"
    )
    for _ in range(2):
        with pytest.raises(RuntimeError, match=expected):
            attend()
    q = torch.zeros(1, 3, 1, 64, dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match=rf"falls back to backend='torch'.*{expected}"):
        assert choose_as_on_a_gpu(monkeypatch, q) == "torch"
    assert len(checked) == 1


@pytest.mark.parametrize(
    ("place", "name"),
    enumerate(("the losses", "the gradient of queries", "the gradient of positives", "the gradient of shared")),
)
def test_a_wrong_info_nce_kernel_raises_by_name(checked, monkeypatch, place, name):
    kernels = contrastive.KERNELS["emulated"]
    monkeypatch.setattr(kernels, "sweep", broken(kernels.sweep, place))
    with pytest.raises(RuntimeError, match=rf"info_nce \(float32\) .*shared negatives: relative error of {name} "):
        loss()


def test_nan_and_exceptions_are_faults(checked, monkeypatch):
    kernels = contrastive.KERNELS["emulated"]
    monkeypatch.setattr(kernels, "negative_scores", lambda queries, negatives: negatives[..., 0] * torch.nan)
    with pytest.raises(RuntimeError, match="relative error of negative_scores nan"):
        loss()

    def fails(*_):
        raise ValueError("no such launch")

    monkeypatch.setattr(attention.KERNELS["emulated"], "backward", fails)
    with pytest.raises(RuntimeError, match="it raised ValueError: no such launch"):
        attend()


def test_the_check_leaves_no_trace_in_the_callers_state(checked):
    before = torch.get_rng_state()
    q = torch.randn(1, 3, 1, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    with FlopCounterMode(display=False) as first:
        soft_mask_attention(q, q, q, 0.5, backend="emulated")
    with FlopCounterMode(display=False) as second:
        soft_mask_attention(q, q, q, 0.5, backend="emulated")
    assert len(checked) == 1
    assert first.get_total_flops() == second.get_total_flops()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("mode", [torch.inference_mode, lambda: torch.autocast("cpu", torch.float16), torch.no_grad])
def test_the_callers_modes_do_not_matter(checked, mode):
    with mode():
        loss()
    assert len(checked) == 1 and list(_first_use._faults.values()) == [None]


class Backward(torch.autograd.Function):
    """Calls `loss` for the first time in its backward pass."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        loss()
        return grad


def test_a_first_use_inside_a_backward_pass(checked):
    Backward.apply(torch.ones(2, requires_grad=True)).sum().backward()
    assert len(checked) == 1


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_code_is_checked_when_it_is_traced(checked, dynamic):
    def step(q):
        return soft_mask_attention(q, q, q, 0.5, backend="emulated")

    q = torch.randn(1, 4, 1, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    torch.testing.assert_close(torch.compile(step, fullgraph=True, dynamic=dynamic, backend="eager")(q), step(q))
    assert len(checked) == 1


def test_a_wrong_kernel_falls_back_with_a_warning_in_compiled_code(checked, monkeypatch):
    kernels = attention.KERNELS["emulated"]
    monkeypatch.setattr(kernels, "forward", broken(kernels.forward, 0))

    monkeypatch.setattr(_backends, "missing_reason", torch.compiler.assume_constant_result(lambda backend: None))

    def chosen(q):
        found = _backends.choose("auto", CUDA, lambda _: attention.KERNELS["emulated"].unsupported(q))
        return q + (1 if found == "torch" else 2)

    with pytest.warns(UserWarning, match=r"soft_mask_attention \(bfloat16, head_dim 64\) failed"):
        out = torch.compile(chosen, fullgraph=True, backend="eager")(torch.zeros(1, 3, 1, 64, dtype=torch.bfloat16))
    assert out.unique().tolist() == [1]


def test_during_graph_capture_the_check_is_put_off(checked, monkeypatch):
    monkeypatch.setattr(_first_use, "CHECKED_BACKENDS", {"cuda"})
    capturing = True
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Test GPU")
    monkeypatch.setattr(_first_use, "_first_wrong", lambda case: "padded: wrong")
    arguments = "info_nce", "cuda", torch.device("cuda", 0), torch.float32, None, False
    assert _first_use.fault(*arguments) is None
    capturing = False
    found = _first_use.fault(*arguments)
    assert "Test GPU (cuda:0, compute capability 9.0): padded: wrong" in found
    capturing = True
    assert _first_use.fault(*arguments) == found


def test_kernels_seen_right_on_a_kind_of_gpu_are_not_checked(checked, monkeypatch):
    monkeypatch.setattr(_first_use, "CHECKED_BACKENDS", {"cuda"})
    monkeypatch.setattr(_first_use, "SEEN_RIGHT", {("info_nce", (9, 0))})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert _first_use.fault("info_nce", "cuda", torch.device("cuda", 0), torch.float32, None, False) is None
    assert not checked


def test_the_environment_variable(checked, monkeypatch):
    monkeypatch.setenv(_first_use.VARIABLE, "no")
    with pytest.raises(ValueError, match=r"CONAN_FAST_SELF_TEST must be 0 .* or 1, got 'no'"):
        attend()
    monkeypatch.setenv(_first_use.VARIABLE, "0")
    monkeypatch.setattr(attention.KERNELS["emulated"], "forward", broken(attention.KERNELS["emulated"].forward, 0))
    attend()
    assert not checked


def test_out_of_memory_is_no_fault(checked, monkeypatch):
    def full(case):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(_first_use, "_first_wrong", full)
        attend()
    attend()
    assert len(checked) == 1


@pytest.mark.gpu
@pytest.mark.skipif(_native.missing_reason("cuda") is not None, reason=f"no kernels: {_native.missing_reason('cuda')}")
@pytest.mark.parametrize("operator", ["soft_mask_attention", "info_nce"])
def test_the_check_on_a_gpu(operator):
    case = Case(operator, "cuda", torch.device("cuda", 0), torch.bfloat16, 64 if operator != "info_nce" else None)
    assert _first_use._first_wrong(case) is None
