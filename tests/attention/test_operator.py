"""Soft-masked attention, padded and packed, against the plain definition in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from conan_fast import reference, soft_mask_attention, soft_mask_attention_varlen
from conan_fast.attention import parts, torch_backend
from tests.support.attention import offsets, random_qkv, value_and_grads
from tests.support.comparison import assert_same
from tests.support.memory import poisoned_memory
from tests.support.strides import strided

ALPHAS = st.sampled_from([0.0, 1e-3, 0.3, 0.999, 1.0])
SATURATIONS = st.sampled_from(["key", "query", "uniform"])
HEADS = st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 2), (3, 1)])
# Score buffers of a few hundred bytes split the heads and rows of even tiny sequences into several blocks.
WORKSPACES = st.sampled_from([1, 600, 4000, 4 << 20])


@pytest.fixture(autouse=True, scope="module")
def unwritten_memory_is_nan():
    with poisoned_memory():
        yield


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(0, 19)), heads=HEADS, alpha=ALPHAS,
    options=st.fixed_dictionaries({"saturation": SATURATIONS, "scale": st.sampled_from([None, 0.7])}),
    layout=st.sampled_from(["plain", "heads first", "every other"]), size=WORKSPACES, seed=st.integers(0, 99),
)  # fmt: skip
def test_padded_equals_reference(shape, heads, alpha, options, layout, size, seed):
    inputs = random_qkv(*shape, heads=heads, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "CPU_WORKSPACE_BYTES", size)
        ours = value_and_grads(
            lambda *x: soft_mask_attention(*(strided(y, layout) for y in x), alpha, **options), inputs
        )
    assert_same(ours, value_and_grads(lambda *x: reference.soft_mask_attention(*x, alpha, **options), inputs))


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.one_of(st.integers(0, 2), st.integers(0, 40)), max_size=9), heads=HEADS, alpha=ALPHAS,
    saturation=SATURATIONS, layout=st.sampled_from(["plain", "heads first", "every other"]), size=WORKSPACES,
    seed=st.integers(0, 99),
)  # fmt: skip
def test_packed_equals_reference(lengths, heads, alpha, saturation, layout, size, seed):
    inputs = random_qkv(sum(lengths), heads=heads, seed=seed)
    cu_seqlens, longest = offsets(lengths), max(lengths, default=0)

    def ours(*x):
        x = [strided(y, layout) for y in x]
        return soft_mask_attention_varlen(*x, cu_seqlens, longest, alpha, saturation=saturation)

    def plain(*x):
        return reference.soft_mask_attention_varlen(*x, cu_seqlens, longest, alpha, saturation=saturation)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "CPU_WORKSPACE_BYTES", size)
        result = value_and_grads(ours, inputs)
    assert_same(result, value_and_grads(plain, inputs))


@settings(deadline=None, max_examples=20)
@given(lengths=st.lists(st.integers(0, 50), min_size=2, max_size=8), alpha=ALPHAS, saturation=SATURATIONS)
def test_a_packed_sequence_gives_the_same_as_alone(lengths, alpha, saturation):
    inputs = random_qkv(sum(lengths))
    packed = value_and_grads(
        lambda *x: soft_mask_attention_varlen(*x, offsets(lengths), 50, alpha, saturation=saturation), inputs
    )
    parts = zip(*(x.split(lengths) for x in inputs), strict=True)
    alone = torch.cat(
        [soft_mask_attention(q[None], k[None], v[None], alpha, saturation=saturation)[0] for q, k, v in parts]
    )
    torch.testing.assert_close(packed[0], alone, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(("alpha", "causal"), [(0.0, True), (1.0, False)])
@pytest.mark.parametrize("saturation", ["key", "query", "uniform"])
def test_alpha_0_and_1_equal_torch_attention(alpha, causal, saturation):
    inputs = random_qkv(2, 23, heads=(6, 3))

    def torch_attention(*x):
        x = [y.transpose(1, 2) for y in x]
        return scaled_dot_product_attention(*x, is_causal=causal, enable_gqa=True).transpose(1, 2)

    ours = value_and_grads(lambda *x: soft_mask_attention(*x, alpha, saturation=saturation), inputs)
    assert_same(ours, value_and_grads(torch_attention, inputs), 1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_a_tensor_alpha_equals_the_float(alpha):
    inputs = random_qkv(2, 17)
    as_tensor = torch.tensor(alpha, dtype=torch.float64)
    ours = value_and_grads(lambda *x: soft_mask_attention(*x, as_tensor), inputs)
    assert_same(ours, value_and_grads(lambda *x: soft_mask_attention(*x, alpha), inputs), 0.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("causal", [True, False])
def test_half_precision_is_as_exact_as_torch_attention(dtype, causal):
    """Relative error (Frobenius) against float64 on the same rounded inputs: at most 1.1 times SDPA's."""
    inputs = random_qkv(2, 96, heads=(4, 4), size=64, dtype=dtype)
    exact_inputs = [x.detach().double().requires_grad_() for x in inputs]
    alpha = 0.0 if causal else 1.0

    def torch_attention(*x):
        return scaled_dot_product_attention(*(y.transpose(1, 2) for y in x), is_causal=causal).transpose(1, 2)

    exact = value_and_grads(torch_attention, exact_inputs)
    ours = value_and_grads(lambda *x: soft_mask_attention(*x, alpha), inputs)
    theirs = value_and_grads(torch_attention, inputs)
    assert all(x.dtype == dtype for x in ours)
    for mine, other, truth in zip(ours, theirs, exact, strict=True):
        assert (mine - truth).norm() <= 1.1 * (other - truth).norm() + 1e-4 * truth.norm()


def test_float32_gradients_and_dtype():
    inputs = random_qkv(41, dtype=torch.float32)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    cu_seqlens = offsets([7, 0, 33, 1])
    ours = value_and_grads(lambda *x: soft_mask_attention_varlen(*x, cu_seqlens, 33, 0.4), inputs)
    plain = value_and_grads(lambda *x: reference.soft_mask_attention_varlen(*x, cu_seqlens, 33, 0.4), exact)
    assert all(x.dtype == torch.float32 for x in ours)
    assert_same([x.double() for x in ours], plain, 1e-5)


@pytest.mark.parametrize("lengths", [[300] * 4, [300, 20, 299, 5, 1, 300]])
def test_nothing_of_size_length_squared_is_kept(lengths):
    inputs = random_qkv(sum(lengths), size=8, dtype=torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        soft_mask_attention_varlen(*inputs, offsets(lengths), 300, 0.5)
    assert kept and max(kept) <= max(x.numel() for x in inputs)


def test_nan_stays_in_its_sequence_and_its_head():
    lengths = [5, 9, 0, 7, 8]
    q, k, v = random_qkv(sum(lengths), heads=(2, 2))
    cu_seqlens = offsets(lengths)
    clean = value_and_grads(lambda *x: soft_mask_attention_varlen(*x, cu_seqlens, 9, 0.5), (q, k, v))
    with torch.no_grad():
        k[13, 1], v[10, 1] = torch.nan, torch.inf  # both in the second sequence
    dirty = value_and_grads(lambda *x: soft_mask_attention_varlen(*x, cu_seqlens, 9, 0.5), (q, k, v))
    hurt = torch.zeros(sum(lengths), 2, dtype=torch.bool)
    hurt[5:14, 1] = True
    for before, after in zip(clean, dirty, strict=True):
        torch.testing.assert_close(before[~hurt], after[~hurt])
    assert dirty[0][hurt].isnan().any(-1).all()


def test_gradients_are_equal_to_the_bit_from_run_to_run():
    lengths = [30, 3, 29, 17, 30]
    inputs = random_qkv(sum(lengths), dtype=torch.float32)

    def attention(*x):
        return soft_mask_attention_varlen(*x, offsets(lengths), 30, 0.5, deterministic=True)

    assert_same(value_and_grads(attention, inputs), value_and_grads(attention, inputs), 0.0)


def test_autocast_accepts_mixed_dtypes_as_sdpa_does():
    q, k, v = random_qkv(2, 9, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = soft_mask_attention(q, k, v.bfloat16(), 0.5)
    assert out.dtype == torch.bfloat16
    rounded = [x.detach().bfloat16() for x in (q, k, v)]
    torch.testing.assert_close(out, soft_mask_attention(*rounded, 0.5), atol=0, rtol=0)
    out.sum().backward()
    assert q.grad.dtype == torch.float32


def test_second_derivatives_raise_instead_of_being_wrong():
    q, k, v = random_qkv(1, 5)
    (grad,) = torch.autograd.grad(soft_mask_attention(q, k, v, 0.5).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="do not support second derivatives"):
        grad.sum().backward()


@pytest.mark.parametrize("mode", [torch.inference_mode, lambda: torch.profiler.profile(), torch.no_grad])
def test_what_is_kept_between_calls_does_not_depend_on_the_first_one(mode):
    """Masks and indices are kept: those of a call in inference mode serve a later one with gradients."""
    for function in (parts._batch_parts, parts._packed_parts, torch_backend._cached_log_mask):
        function.cache_clear()
    inputs, cu_seqlens = random_qkv(17), offsets([5, 0, 12])
    with mode():
        soft_mask_attention_varlen(*inputs, cu_seqlens, 12, 0.3)
        torch.func.vmap(lambda *x: soft_mask_attention_varlen(*x, cu_seqlens, 12, 0.3))(*(x[None] for x in inputs))
    ours = value_and_grads(lambda *x: soft_mask_attention_varlen(*x, cu_seqlens, 12, 0.3), inputs)
    plain = value_and_grads(lambda *x: reference.soft_mask_attention_varlen(*x, cu_seqlens, 12, 0.3), inputs)
    assert_same(ours, plain)


def test_the_profiler_sees_the_operators():
    q, k, v = random_qkv(1, 5)
    with torch.profiler.profile() as profile:
        soft_mask_attention(q, k, v, 0.5).sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert {"conan_fast::attention_forward", "conan_fast::attention_backward"} <= names


def test_modes_and_subclasses_of_torch_see_the_operators():
    class Names(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            self.names.append(function.name())
            return function(*arguments, **keywords or {})

    q, k, v = random_qkv(1, 5)
    with Names() as seen:
        soft_mask_attention(q, k, v, 0.5).sum().backward()
    assert [name for name in seen.names if "conan" in name] == [
        "conan_fast::attention_forward",
        "conan_fast::attention_backward",
    ]
    mode = FakeTensorMode()
    fake = [mode.from_tensor(x.detach()) for x in (q, k, v)]
    assert isinstance(soft_mask_attention(*fake, 0.5), FakeTensor)  # outside of the mode
