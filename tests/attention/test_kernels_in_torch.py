"""The attention kernels as torch operators, and the arguments that they and their bindings reject."""

import pytest
import torch
from torch.library import opcheck
from torch.utils.dlpack import to_dlpack

from conan_fast import _checks, _native, soft_mask_attention, soft_mask_attention_varlen
from conan_fast.attention.ops import KERNELS
from conan_fast.attention.settings import Settings
from conan_fast.attention.soft_mask import SATURATIONS
from tests.support.attention import random_qkv, value_and_grads
from tests.support.comparison import assert_same
from tests.support.memory import poisoned_empty

OFFSETS = torch.tensor([0, 5, 5, 17], dtype=torch.int32)


def packed_inputs(device, dtype=torch.bfloat16, size=64):
    return random_qkv(17, heads=(2, 1), size=size, dtype=dtype, device=device)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
def test_operators_pass_torchs_own_checks(kernel_backend, packed, deterministic):
    backend, device = kernel_backend
    q, k, v = (x.detach() if packed else x.detach()[None] for x in packed_inputs(device))
    offsets = OFFSETS.to(device) if packed else None
    settings = (offsets, torch.tensor(0.3, device=device), None, 12, 0.3, 0.35, "key", deterministic, backend)
    opcheck(torch.ops.conan_fast.attention_forward.default, (q, k, v, *settings))
    saved = q, k, v, *torch.ops.conan_fast.attention_forward(q, k, v, *settings)
    for needed in ([True, True, True], [True, False, False], [False, True, False]):
        opcheck(torch.ops.conan_fast.attention_backward.default, (saved[3].clone(), *saved, needed, *settings))


@pytest.mark.parametrize("as_tensor", [False, True])
def test_compile_without_graph_break(kernel_backend, as_tensor):
    backend, device = kernel_backend
    alpha = torch.tensor(0.3, device=device) if as_tensor else 0.3
    offsets = OFFSETS.to(device)

    def attention(q, k, v):
        options = {"backend": backend, "deterministic": True}
        packed = soft_mask_attention_varlen(q, k, v, offsets, 12, alpha, **options)
        return packed + soft_mask_attention(q[None], k[None], v[None], alpha, **options)[0]

    inputs = packed_inputs(device)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    assert_same(value_and_grads(compiled, inputs), value_and_grads(attention, inputs), 0)


def test_autocast_brings_float32_to_the_kernels(kernel_backend):
    backend, device = kernel_backend
    q, k, v = packed_inputs(device, dtype=torch.float32)
    offsets = OFFSETS.to(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        out = soft_mask_attention_varlen(q, k, v, offsets, 12, 0.5, backend=backend)
    rounded = [x.detach().bfloat16() for x in (q, k, v)]
    assert_same([out], [soft_mask_attention_varlen(*rounded, offsets, 12, 0.5, backend=backend)], 0)
    out.sum().backward()  # its gradient is one element, expanded
    assert q.grad.dtype == torch.float32 and q.grad.abs().sum() > 0


def test_inputs_are_left_as_they_are(kernel_backend):
    backend, device = kernel_backend
    inputs = packed_inputs(device)
    before = [x.detach().clone() for x in inputs]
    value_and_grads(lambda *x: soft_mask_attention_varlen(*x, OFFSETS.to(device), 12, 0.5, backend=backend), inputs)
    assert_same([x.detach() for x in inputs], before, 0)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"dtype": torch.float32}, TypeError, "q must be bfloat16 or float16 for the kernels, got torch.float32"),
        ({"size": 80}, ValueError, "q must have a head_dim out of .*112.*, got 80"),
        ({"device": "meta"}, ValueError, "q must be on a cpu device for backend='emulated', got meta"),
        ({"offsets": [0, 4, 3, 17]}, ValueError, "cu_seqlens must not fall"),
        ({"offsets": [0, 17], "longest": 12}, ValueError, "max_seqlen must be at least"),
        ({"alpha": torch.tensor(1.5)}, ValueError, "alpha must be in"),
        ({"alpha": torch.tensor(float("nan"))}, ValueError, "alpha must be in"),
    ],
)
def test_unsupported_arguments_raise(emulated, changes, error, message):
    device = changes.get("device", "cpu")
    inputs = [
        x.detach().to(device)
        for x in packed_inputs("cpu", changes.get("dtype", torch.bfloat16), changes.get("size", 64))
    ]
    offsets = torch.tensor(changes.get("offsets", [0, 17]), dtype=torch.int32, device=device)
    with pytest.raises(error, match=message):
        soft_mask_attention_varlen(
            *inputs, offsets, changes.get("longest", 17), changes.get("alpha", 0.5), backend="emulated"
        )


def binding_arguments(**changes):
    """Arguments of the compiled attention_forward for q [2, 9, 4, 64], k and v [2, 9, 2, 64]."""
    q, k, v = (torch.zeros(2, 9, heads, 64, dtype=torch.bfloat16) for heads in (4, 2, 2))
    arguments = {
        "q": q, "k": k, "v": v, "cu_seqlens": None, "max_seqlen": 0, "alpha": 0.5, "alpha_tensor": None,
        "saturation": 0, "scale": 0.1, "out": torch.empty_like(q), "logsumexp": torch.empty(2, 4, 9),
        "schedule": None, "stream": 0,
    } | changes  # fmt: skip
    return {name: to_dlpack(x) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}


ROWS = torch.zeros(2, 9, 2, 64, dtype=torch.bfloat16)
CODES = len(SATURATIONS)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"k": ROWS.half()}, TypeError, "k must be bfloat16, got float16"),
        ({"q": torch.zeros(2, 9, 4, 64)}, TypeError, "q must be float16, got float32"),
        ({"q": torch.zeros(9, 4, 64, dtype=torch.bfloat16)}, ValueError, "q must have 4 dimensions"),
        ({"v": ROWS[:, :8]}, ValueError, r"v must have shape \[2, 9, 2, 64\], got \[2, 8, 2, 64\]"),
        ({"k": ROWS[..., :32]}, ValueError, r"k must have shape"),
        ({"k": ROWS.mT.contiguous().mT}, ValueError, "k must have rows aligned to 16 bytes, got strides"),
        ({"k": torch.zeros(ROWS.numel() + 1, dtype=ROWS.dtype)[1:].view(ROWS.shape)}, ValueError, "aligned"),
        ({"k": ROWS[:, :, :0], "v": ROWS[:, :, :0]}, ValueError, "multiple of the heads of k"),
        ({"logsumexp": torch.empty(2, 9, 4).mT}, ValueError, "logsumexp must be contiguous"),
        ({"out": ROWS}, ValueError, "out must have shape"),
        ({"alpha": float("nan")}, ValueError, r"alpha must be in \[0, 1\], got nan"),
        ({"scale": -1.0}, ValueError, "scale must be positive, got -1.0"),
        ({"saturation": CODES}, ValueError, rf"saturation must be in \[0, {CODES}\), got {CODES}"),
        ({"saturation": -1}, ValueError, rf"saturation must be in \[0, {CODES}\), got -1"),
        ({"alpha_tensor": torch.zeros((), dtype=torch.float64)}, TypeError, "alpha_tensor must be float32"),
        ({"q": 3}, TypeError, "q must be a DLPack capsule that has not been consumed, got int"),
        ({"logsumexp": None}, TypeError, "logsumexp must be a DLPack capsule .* got NoneType"),
    ],
)
def test_bindings_check_every_argument(emulated, changes, error, message):
    with pytest.raises(error, match=message):
        emulated.attention_forward(**binding_arguments(**changes))


def backward_arguments(**changes):
    """Arguments of the compiled attention_backward for the same tensors."""
    forward = binding_arguments()
    del forward["stream"], forward["schedule"]
    q, k = torch.zeros(2, 9, 4, 64, dtype=torch.bfloat16), ROWS
    arguments = {
        "grad_out": q, "out": q, "logsumexp": torch.zeros(2, 4, 9), "dq": torch.empty_like(q),
        "dk": torch.empty_like(k), "dv": torch.empty_like(k), "dq_sum": None, "delta": torch.empty(2, 4, 9),
        "schedule": None, "stream": 0,
    } | changes  # fmt: skip
    return forward | {name: to_dlpack(x) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dk": None}, "dk and dv must both be tensors or both be None"),
        ({"dv": None}, "dk and dv must both be tensors or both be None"),
        ({"dk": None, "dv": None, "dq_sum": torch.zeros(2, 9, 4, 64)}, "dq_sum must be None without dk and dv"),
        ({"dq": ROWS}, "dq must have shape"),
    ],
)
def test_the_binding_of_the_backward_pass_checks_its_outputs(emulated, changes, message):
    with pytest.raises(ValueError, match=message):
        emulated.attention_backward(**backward_arguments(**changes))


def test_bindings_accept_right_arguments(emulated):
    emulated.attention_forward(**binding_arguments())
    emulated.attention_backward(**backward_arguments())
    emulated.attention_backward(**backward_arguments(dq=None))
    emulated.attention_backward(**backward_arguments(dk=None, dv=None))


def test_the_stride_of_a_dimension_with_one_entry_is_ignored(emulated):
    """torch 2.6 passes 1 for it. Further rows would then have unaligned addresses, but there are none."""
    one = torch.ones(1, 1, 1, 64, dtype=torch.bfloat16).as_strided((1, 1, 1, 64), (1, 1, 1, 1))
    out = torch.zeros_like(one)
    emulated.attention_forward(**binding_arguments(q=one, k=one, v=one, out=out, logsumexp=torch.empty(1, 1, 1)))
    assert_same([out], [torch.ones_like(out)], 0)


def unchecked_offsets(monkeypatch):
    """As on a GPU, where reading them would synchronize."""
    monkeypatch.setattr(_checks, "sequences", lambda *_: None)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(
    ("ends", "longest", "owned"),
    [
        ([0, 5, 5, 300], 300, range(300)),  # as a CUDA graph that is replayed with fewer tokens
        ([40, 50, 700], 1000, range(40, 700)),
        ([0, 400, 600], 150, [*range(150), *range(400, 550)]),
        ([0, 0, 0], 0, []),
        ([0], 5, []),
        ([700, 0, 100], 100, range(100)),
    ],
)
def test_rows_of_no_sequence_are_zero(kernel_backend, deterministic, ends, longest, owned, monkeypatch):
    backend, device = kernel_backend
    unchecked_offsets(monkeypatch)
    inputs = random_qkv(700, heads=(2, 1), size=64, dtype=torch.bfloat16, device=device)
    cu_seqlens = torch.tensor(ends, dtype=torch.int32, device=device)
    unused = torch.ones(700, dtype=torch.bool, device=device)
    unused[list(owned)] = False
    with poisoned_empty():
        results = value_and_grads(
            lambda *x: soft_mask_attention_varlen(
                *x, cu_seqlens, longest, 0.3, deterministic=deterministic, backend=backend
            ),
            inputs,
        )
        settings = Settings(cu_seqlens, longest, 0.3, 0.1, "key", deterministic)
        _, logsumexp = KERNELS[backend].forward(*(x.detach() for x in inputs), settings)
    for x in (*results, logsumexp.mT.unsqueeze(-1)):
        assert x[unused].eq(0).all() and x[~unused].ne(0).any(-1).all() and x.isfinite().all()


def test_few_tokens_and_no_sequence(kernel_backend, monkeypatch):
    """With fewer tokens than a tile there is no room for a schedule, and nothing to compute."""
    backend, device = kernel_backend
    unchecked_offsets(monkeypatch)
    inputs = packed_inputs(device)
    cu_seqlens = torch.zeros(1, dtype=torch.int32, device=device)
    with poisoned_empty():
        results = value_and_grads(
            lambda *x: soft_mask_attention_varlen(*x, cu_seqlens, 17, 0.3, backend=backend), inputs
        )
    assert_same(results, [torch.zeros_like(x) for x in results], 0)


def test_only_rows_of_the_sequences_are_read(kernel_backend, monkeypatch):
    """What lies past the last sequence does not change its results."""
    backend, device = kernel_backend
    unchecked_offsets(monkeypatch)
    inputs = random_qkv(90, heads=(2, 1), size=64, dtype=torch.bfloat16, device=device)
    cu_seqlens = torch.tensor([0, 30, 70], dtype=torch.int32, device=device)

    def run():
        return value_and_grads(
            lambda *x: soft_mask_attention_varlen(*x, cu_seqlens, 40, 0.3, deterministic=True, backend=backend), inputs
        )

    before = run()
    with torch.no_grad():
        for x in inputs:
            x[70:] = torch.nan
    assert_same(run(), before, 0)


@pytest.mark.gpu
@pytest.mark.skipif(_native.missing_reason("cuda") is not None, reason=f"no kernels: {_native.missing_reason('cuda')}")
class TestOnAGpu:
    """Streams, CUDA graphs and synchronization."""

    def test_no_operator_synchronizes(self):
        inputs, offsets = packed_inputs("cuda"), OFFSETS.cuda()
        alpha, weight = torch.tensor(0.3, device="cuda"), torch.ones_like(inputs[0])
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for deterministic in (False, True):
                out = soft_mask_attention_varlen(*inputs, offsets, 12, alpha, deterministic=deterministic)
                torch.autograd.grad(out, inputs, weight)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_a_graph_replays_with_another_alpha_and_other_offsets(self):
        inputs, offsets = packed_inputs("cuda"), OFFSETS.cuda()
        alpha = torch.tensor(0.0, device="cuda")

        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            weight = torch.randn(inputs[0].shape, device="cuda").to(inputs[0].dtype)

            def captured():
                out = soft_mask_attention_varlen(*inputs, offsets, 17, alpha, deterministic=True)
                return [out, *torch.autograd.grad(out, inputs, weight)]

            captured()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = captured()
        for value, ends in ((0.3, [0, 5, 5, 17]), (1.0, [0, 1, 16, 17]), (0.0, [0, 0, 17, 17]), (0.3, [0, 3, 5, 9])):
            alpha.fill_(value)
            offsets.copy_(torch.tensor(ends, dtype=torch.int32))
            graph.replay()
            torch.cuda.synchronize()
            assert_same([x.detach() for x in results], [x.detach() for x in captured()], 0)
            assert all(x[ends[-1] :].eq(0).all() for x in results)

    def test_the_current_stream_is_used(self):
        inputs, offsets = packed_inputs("cuda"), OFFSETS.cuda()
        expected = soft_mask_attention_varlen(*inputs, offsets, 12, 0.3)
        torch.cuda.synchronize()
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            late = [torch.zeros_like(x) for x in inputs]
            torch.cuda._sleep(50_000_000)
            for target, x in zip(late, inputs, strict=True):
                target.copy_(x.detach())
            out = soft_mask_attention_varlen(*late, offsets, 12, 0.3)
        side.synchronize()
        assert_same([out], [expected], 0)

    def test_wrong_offsets_and_alpha_on_the_gpu_do_no_harm(self):
        inputs = packed_inputs("cuda")
        offsets = torch.tensor([-5, 2**30, 3, 99, -(2**31)], dtype=torch.int32, device="cuda")
        for alpha in (torch.nan, torch.inf, -1.0):
            out = soft_mask_attention_varlen(*inputs, offsets, 2**30, torch.tensor(alpha, device="cuda"))
            torch.autograd.grad(out.sum(), inputs)
        torch.cuda.synchronize()

    def test_auto_selects_the_kernels(self):
        inputs = packed_inputs("cuda")
        assert_same(
            [soft_mask_attention_varlen(*inputs, OFFSETS.cuda(), 12, 0.3)],
            [soft_mask_attention_varlen(*inputs, OFFSETS.cuda(), 12, 0.3, backend="cuda")],
            0,
        )
