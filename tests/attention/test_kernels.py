"""The attention kernels, on the CPU emulation and, where there is one, on a GPU: the same tests."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conan_fast import reference, soft_mask_attention, soft_mask_attention_varlen
from tests.support.kernel_inputs import (
    LENGTHS,
    SHARED_MEMORY,
    assert_as_exact_as_torch,
    chip,
    poisoned_memory,
    random_qkv,
    sdpa_varlen,
    value_and_grads,
)

ALPHAS = [0.0, 1e-3, 0.3, 0.999, 1.0]
HEAD_DIMS = [64, 96, 112, 128]
SATURATIONS = ["key", "query", "uniform"]
DTYPES = [torch.bfloat16, torch.float16]
KERNEL_SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

drawn_call = {
    "heads": st.sampled_from([(1, 1), (2, 2), (4, 2), (4, 1), (3, 1)]),
    "alpha": st.sampled_from(ALPHAS),
    "as_tensor": st.booleans(),
    "saturation": st.sampled_from(SATURATIONS),
    "scale": st.sampled_from([None, 0.02, 0.25]),
    "deterministic": st.booleans(),
    "layout": st.sampled_from(["plain", "heads first", "fused", "every other", "shifted"]),
    "on_chip": st.sampled_from(list(SHARED_MEMORY)),
    "seed": st.integers(0, 2**32),
}


def strided(x, layout):
    """The values of x under other strides; the last two have rows that kernels cannot read in place."""
    if layout == "heads first":
        return x.transpose(-3, -2).contiguous().transpose(-3, -2)
    if layout == "fused":
        return torch.cat([x, x], -2)[..., x.shape[-2] :, :]
    if layout == "every other":
        return torch.stack([x, x], -1).flatten(-2)[..., ::2]
    if layout == "shifted":
        return torch.cat([x[..., :1], x], -1)[..., 1:]
    return x


def offsets(lengths, device):
    return torch.tensor([0, *lengths]).cumsum(0).int().to(device)


def check(backend, device, lengths, packed, size, dtype, drawn):
    """One call with drawn settings against float64, beside torch's error on the same inputs."""
    alpha, saturation, on_chip, seed = (drawn[key] for key in ("alpha", "saturation", "on_chip", "seed"))
    strength = torch.tensor(alpha, device=device) if drawn["as_tensor"] else alpha
    options = {key: drawn[key] for key in ("saturation", "scale", "deterministic")} | {"backend": backend}
    scale = size**-0.5 if drawn["scale"] is None else drawn["scale"]
    # With only a few rows, chance decides which result is closer to float64: then the sequences are repeated.
    lengths = lengths * min(8, -(-400 // max(1, sum(lengths) * drawn["heads"][0])))
    tokens = [sum(lengths)] if packed else [len(lengths), lengths[0] if lengths else 5]
    inputs = random_qkv(*tokens, heads=drawn["heads"], size=size, dtype=dtype, device=device, seed=seed)

    def ours(*x):
        x = [strided(y, drawn["layout"]) for y in x]
        if packed:
            return soft_mask_attention_varlen(
                *x, offsets(lengths, device), max(lengths, default=0), strength, **options
            )
        return soft_mask_attention(*x, strength, **options)

    def plain(*x):
        if inputs[0].numel() == 0:
            return torch.cat([y.sum(-2, keepdim=True).expand_as(x[0]) * 0 for y in x]).narrow(0, 0, len(x[0]))
        out = sdpa_varlen(*(y.reshape(-1, *y.shape[-2:]) for y in x), lengths, alpha, saturation, scale)
        return out.view_as(x[0])

    with poisoned_memory(), chip(backend, on_chip, seed):
        result = value_and_grads(ours, inputs)
    exact = value_and_grads(plain, [x.detach().double().requires_grad_() for x in inputs])
    assert_as_exact_as_torch(result, value_and_grads(plain, inputs), exact)


@pytest.mark.parametrize("size", HEAD_DIMS)
@settings(KERNEL_SETTINGS, max_examples=12)
@given(batch=st.integers(0, 2), length=st.sampled_from(LENGTHS), dtype=st.sampled_from(DTYPES), **drawn_call)
def test_padded_against_float64(kernel_backend, size, batch, length, dtype, **drawn):
    check(*kernel_backend, [length] * batch, False, size, dtype, drawn)


@pytest.mark.parametrize("size", HEAD_DIMS)
@settings(KERNEL_SETTINGS, max_examples=12)
@given(lengths=st.lists(st.sampled_from(LENGTHS), max_size=5), dtype=st.sampled_from(DTYPES), **drawn_call)
def test_packed_against_float64(kernel_backend, size, lengths, dtype, **drawn):
    check(*kernel_backend, lengths, True, size, dtype, drawn)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("saturation", SATURATIONS)
def test_every_strength_and_saturation_over_several_tiles(kernel_backend, alpha, saturation):
    drawn = {
        "heads": (2, 1), "alpha": alpha, "as_tensor": True, "saturation": saturation, "scale": None,
        "deterministic": False, "layout": "plain", "on_chip": "Hopper", "seed": 3,
    }  # fmt: skip
    check(*kernel_backend, [259, 130], True, 112, torch.bfloat16, drawn)


@pytest.mark.parametrize("on_chip", list(SHARED_MEMORY))
@pytest.mark.parametrize("size", HEAD_DIMS)
def test_the_result_does_not_depend_on_the_order_in_which_warps_run(kernel_backend, size, on_chip):
    backend, device = kernel_backend
    lengths = [129, 1, 0, 70, 64]
    inputs = random_qkv(sum(lengths), heads=(2, 1), size=size, dtype=torch.bfloat16, device=device)

    def run(seed, deterministic):
        with poisoned_memory(), chip(backend, on_chip, seed):
            return value_and_grads(
                lambda *x: soft_mask_attention_varlen(
                    *x, offsets(lengths, device), 129, 0.3, deterministic=deterministic, backend=backend
                ),
                inputs,
            )

    first, first_ordered = run(0, False), run(0, True)
    for seed in range(1, 6):
        for mine, other in zip(run(seed, True), first_ordered, strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=0)
        out, dq, dk, dv = run(seed, False)
        for mine, other in zip((out, dk, dv), (first[0], first[2], first[3]), strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=0)
        # Sums of fp32 in another order, then rounded to bf16: a few last bits differ.
        assert (dq - first[1]).norm() <= 1e-3 * first[1].norm()


def test_torchs_own_switch_for_determinism_counts(kernel_backend):
    backend, device = kernel_backend
    inputs = random_qkv(1, 200, heads=(2, 1), size=64, dtype=torch.bfloat16, device=device)
    ordered = value_and_grads(lambda *x: soft_mask_attention(*x, 0.3, deterministic=True, backend=backend), inputs)
    torch.use_deterministic_algorithms(True)
    try:
        switched = value_and_grads(lambda *x: soft_mask_attention(*x, 0.3, backend=backend), inputs)
    finally:
        torch.use_deterministic_algorithms(False)
    for mine, other in zip(switched, ordered, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)


def test_many_sequences(kernel_backend):
    """More than the scheduling kernel has threads, of more lengths than one class, most of them empty or very short."""
    backend, device = kernel_backend
    generator = torch.Generator().manual_seed(0)
    lengths = (torch.rand(1100, generator=generator) ** 8 * 3).int().tolist() + [150, 64]
    inputs = random_qkv(sum(lengths), heads=(1, 1), size=64, dtype=torch.float16, device=device)
    with poisoned_memory():
        ours = value_and_grads(
            lambda *x: soft_mask_attention_varlen(*x, offsets(lengths, device), 4096, 0.5, backend=backend), inputs
        )
    exact = [x.detach().double().requires_grad_() for x in inputs]
    plain = value_and_grads(
        lambda *x: reference.soft_mask_attention_varlen(*x, offsets(lengths, device), 150, 0.5), exact
    )
    for mine, truth in zip(ours, plain, strict=True):
        assert (mine - truth).norm() <= 1e-3 * truth.norm()


@pytest.mark.parametrize("deterministic", [False, True])
def test_nan_and_inf_stay_in_their_sequence_and_head(kernel_backend, deterministic):
    backend, device = kernel_backend
    lengths = [70, 90, 0, 17, 64]
    inputs = random_qkv(sum(lengths), heads=(2, 2), size=64, dtype=torch.bfloat16, device=device)

    def run():
        return value_and_grads(
            lambda *x: soft_mask_attention_varlen(
                *x, offsets(lengths, device), 90, 0.5, deterministic=deterministic, backend=backend
            ),
            inputs,
        )

    clean = run()
    with torch.no_grad():
        inputs[1][100, 1], inputs[2][90, 1] = torch.nan, torch.inf  # both in the second sequence
    dirty = run()
    hurt = torch.zeros(sum(lengths), 2, dtype=torch.bool, device=device)
    hurt[70:160, 1] = True
    for before, after in zip(clean, dirty, strict=True):
        torch.testing.assert_close(before[~hurt], after[~hurt], rtol=0, atol=1e-2)
    assert dirty[0][hurt].isnan().any(-1).all()


def test_large_scores_neither_overflow_nor_lose_the_largest(kernel_backend):
    backend, device = kernel_backend
    q, k, v = random_qkv(1, 130, heads=(1, 1), size=64, dtype=torch.bfloat16, device=device)
    inputs = [(q * 60).detach().requires_grad_(), (k * 60).detach().requires_grad_(), v]
    ours = value_and_grads(lambda *x: soft_mask_attention(*x, 0.3, backend=backend), inputs)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    truth = value_and_grads(lambda *x: reference.soft_mask_attention(*x, 0.3), exact)
    assert all(x.isfinite().all() for x in ours)
    assert (ours[0] - truth[0]).norm() <= 1e-2 * truth[0].norm()
    assert (ours[3] - truth[3]).norm() <= 1e-2 * truth[3].norm()


def test_shared_memory_is_read_without_bank_conflicts(emulated):
    before = emulated.bank_conflicts()
    for size in HEAD_DIMS:
        for deterministic in (False, True):
            inputs = random_qkv(1, 130, heads=(2, 1), size=size, dtype=torch.bfloat16, device="cpu")
            value_and_grads(
                lambda *x, flag=deterministic: soft_mask_attention(*x, 0.3, deterministic=flag, backend="emulated"),
                inputs,
            )
    assert emulated.bank_conflicts() == before
