"""The attention kernels against float64, in the CPU emulation and, if there is one, on a GPU."""

import pytest
import torch
from hypothesis import strategies as st

from conan_fast import reference, soft_mask_attention, soft_mask_attention_varlen
from tests.support.attention import assert_as_exact_as_torch, offsets, random_qkv, sdpa_varlen, value_and_grads
from tests.support.chip import SHARED_MEMORY, chip
from tests.support.comparison import assert_same
from tests.support.memory import poisoned_empty
from tests.support.random_examples import random_examples
from tests.support.strides import strided

# One below, at and above everything that the kernels count in: 8, 16, 32, 64 and 128 rows.
LENGTHS = [0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 95, 127, 128, 129, 191, 193]
ALPHAS = [0.0, 1e-3, 0.3, 0.999, 1.0]
HEAD_DIMS = [64, 96, 112, 128]
SATURATIONS = ["key", "query", "uniform"]
DTYPES = [torch.bfloat16, torch.float16]

RANDOM_OPTIONS = st.fixed_dictionaries(
    {
        "heads": st.sampled_from([(1, 1), (2, 2), (4, 2), (4, 1), (3, 1)]),
        "alpha": st.sampled_from(ALPHAS),
        "as_tensor": st.booleans(),
        "saturation": st.sampled_from(SATURATIONS),
        "scale": st.sampled_from([None, 0.02, 0.25]),
        "deterministic": st.booleans(),
        "layout": st.sampled_from(["plain", "heads first", "fused", "every other", "shifted"]),
        "chip": st.sampled_from(list(SHARED_MEMORY)),
        "seed": st.integers(0, 2**32),
    }
)


def check(backend, device, lengths, packed, size, dtype, options):
    """Errors against float64, beside torch's on the same inputs, of one call with `options` out of RANDOM_OPTIONS."""
    alpha, saturation, seed = options["alpha"], options["saturation"], options["seed"]
    strength = torch.tensor(alpha, device=device) if options["as_tensor"] else alpha
    passed = {key: options[key] for key in ("saturation", "scale", "deterministic")} | {"backend": backend}
    scale = size**-0.5 if options["scale"] is None else options["scale"]
    # With only a few rows, chance decides which result is closer to float64: then the sequences are repeated.
    lengths = lengths * min(8, -(-400 // max(1, sum(lengths) * options["heads"][0])))
    tokens = [sum(lengths)] if packed else [len(lengths), lengths[0] if lengths else 5]
    inputs = random_qkv(*tokens, heads=options["heads"], size=size, dtype=dtype, device=device, seed=seed)

    def ours(*x):
        x = [strided(y, options["layout"]) for y in x]
        if packed:
            return soft_mask_attention_varlen(*x, offsets(lengths, device), max(lengths, default=0), strength, **passed)
        return soft_mask_attention(*x, strength, **passed)

    def plain(*x):
        if inputs[0].numel() == 0:
            return torch.cat([y.sum(-2, keepdim=True).expand_as(x[0]) * 0 for y in x]).narrow(0, 0, len(x[0]))
        out = sdpa_varlen(*(y.reshape(-1, *y.shape[-2:]) for y in x), lengths, alpha, saturation, scale)
        return out.view_as(x[0])

    with poisoned_empty(), chip(backend, options["chip"], seed):
        result = value_and_grads(ours, inputs)
    exact = value_and_grads(plain, [x.detach().double().requires_grad_() for x in inputs])
    assert_as_exact_as_torch(result, value_and_grads(plain, inputs), exact)


@random_examples(
    4,
    proof=12,
    batch=st.integers(0, 2),
    length=st.sampled_from(LENGTHS),
    dtype=st.sampled_from(DTYPES),
    options=RANDOM_OPTIONS,
)
@pytest.mark.parametrize("size", HEAD_DIMS)
def test_padded_against_float64(kernel_backend, size, batch, length, dtype, options):
    check(*kernel_backend, [length] * batch, False, size, dtype, options)


@random_examples(
    4,
    proof=12,
    lengths=st.lists(st.sampled_from(LENGTHS), max_size=5),
    dtype=st.sampled_from(DTYPES),
    options=RANDOM_OPTIONS,
)
@pytest.mark.parametrize("size", HEAD_DIMS)
def test_packed_against_float64(kernel_backend, size, lengths, dtype, options):
    check(*kernel_backend, lengths, True, size, dtype, options)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("saturation", SATURATIONS)
def test_every_strength_and_saturation_over_several_tiles(kernel_backend, alpha, saturation):
    options = {
        "heads": (2, 1), "alpha": alpha, "as_tensor": True, "saturation": saturation, "scale": None,
        "deterministic": False, "layout": "plain", "chip": "Hopper", "seed": 3,
    }  # fmt: skip
    check(*kernel_backend, [259, 130], True, 112, torch.bfloat16, options)


# All kernels that are compiled run on "Hopper" and "8.6". Chip 8.0 runs the same ones as Hopper.
@pytest.mark.parametrize("on_chip", ["Hopper", pytest.param("8.0", marks=pytest.mark.proof), "8.6"])
@pytest.mark.parametrize("size", HEAD_DIMS)
def test_the_result_does_not_depend_on_the_order_in_which_warps_run(kernel_backend, size, on_chip):
    backend, device = kernel_backend
    lengths = [129, 1, 0, 70, 64]
    inputs = random_qkv(sum(lengths), heads=(2, 1), size=size, dtype=torch.bfloat16, device=device)

    def run(seed, deterministic):
        with poisoned_empty(), chip(backend, on_chip, seed):
            return value_and_grads(
                lambda *x: soft_mask_attention_varlen(
                    *x, offsets(lengths, device), 129, 0.3, deterministic=deterministic, backend=backend
                ),
                inputs,
            )

    first, first_ordered = run(0, False), run(0, True)
    for seed in range(1, 6):
        assert_same(run(seed, True), first_ordered, 0)
        out, dq, dk, dv = run(seed, False)
        assert_same([out, dk, dv], [first[0], first[2], first[3]], 0)
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
    assert_same(switched, ordered, 0)


def test_many_sequences(kernel_backend):
    """More sequences than the scheduling kernel has threads, of several length classes, most empty or very short."""
    backend, device = kernel_backend
    generator = torch.Generator().manual_seed(0)
    lengths = (torch.rand(1100, generator=generator) ** 8 * 3).int().tolist() + [150, 64]
    inputs = random_qkv(sum(lengths), heads=(1, 1), size=64, dtype=torch.float16, device=device)
    with poisoned_empty():
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
