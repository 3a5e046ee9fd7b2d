"""The contrastive kernels against float64, in the CPU emulation and, if there is one, on a GPU."""

import pytest
import torch
from hypothesis import strategies as st

from conan_fast import info_nce, reference
from conan_fast.contrastive.kernel_backend import passes as kernel_passes
from conan_fast.contrastive.kernel_backend import workspace
from conan_fast.contrastive.kernel_backend.matmul import multiply
from tests.support.chip import chip
from tests.support.contrastive import (
    WAYS,
    assert_as_exact_as_eager,
    everything,
    random_batches,
    random_features,
    random_ids,
    way,
)
from tests.support.memory import poisoned_empty
from tests.support.random_examples import random_examples
from tests.support.strides import strided

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# One below, at and above what the kernels count in: 8, 32, 64 and 128 rows or columns.
ROWS = [1, 2, 7, 8, 9, 31, 32, 33, 63, 64, 65, 127, 128, 129, 150, 200]
SIZES = [16, 24, 32, 40, 64, 90, 96, 130, 144]


def random_negatives(rows):
    return st.sampled_from([None, 0, 1, 2, 7] if rows > 9 else [None, 1, 7, 64])


@random_examples(
    12, proof=60,
    batch=random_batches(st.sampled_from(ROWS), random_negatives, st.sampled_from(SIZES), dim_step=16),
    temperature=st.sampled_from([0.01, 0.05, 1.0]), dtype=st.sampled_from(DTYPES), taken=st.sampled_from(list(WAYS)),
    layout=st.sampled_from(["plain", "wide", "every other", "shifted"]),
)  # fmt: skip
def test_against_float64(kernel_backend, batch, temperature, dtype, taken, layout):
    backend, device = kernel_backend
    ours, eager, exact = [], [], []
    # With only a few rows, chance decides which result is closer to float64: then several batches are compared.
    few = batch.rows < 63
    for repeat in range(6 if few else 1):
        features, options = batch.inputs(dtype, device, repeat)
        inputs = [strided(x.detach(), layout).requires_grad_() for x in features]
        with poisoned_empty(), chip(backend, "Hopper", batch.seed), way(taken):
            ours.append(everything(info_nce, inputs, temperature, backend=backend, **options))
        doubles = [x.detach().double().requires_grad_() for x in features]
        exact.append(everything(reference.info_nce, doubles, temperature, **options))
        eager.append(everything(reference.info_nce, features, temperature, **options))
    assert_as_exact_as_eager(ours, eager, exact, temperature, 1.5 if few else 1.1)


@pytest.mark.parametrize("taken", ["whole", "tiles"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_result_does_not_depend_on_the_order_in_which_warps_run(kernel_backend, dtype, taken):
    """528 dimensions: a row's gradient is written by more warps than one, in memory that all of them read."""
    backend, device = kernel_backend
    features = random_features(70, 1, 528, dtype, device)
    options = {"dims": [16, 112, 528], "backend": backend, **random_ids(70, 1, device)}

    def run(seed, scope):
        with poisoned_empty(), chip(backend, "Hopper", seed), way(taken):
            return everything(info_nce, features, 0.05, negative_scope=scope, **options)

    for scope in ("shared", "private"):
        first = run(0, scope)
        assert all(x.isfinite().all() for x in first.values())
        for seed in range(1, 4):
            for name, again in run(seed, scope).items():
                torch.testing.assert_close(again, first[name], rtol=0, atol=0, msg=f"{name} differs, seed {seed}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("taken", ["whole", "tiles"])
def test_identical_embeddings_at_a_low_temperature(kernel_backend, dtype, taken):
    backend, device = kernel_backend
    queries = torch.full((130, 48), 3.0, dtype=dtype, device=device).requires_grad_()
    with way(taken):
        result = info_nce(queries, queries.detach(), temperature=0.01, dims=[16, 48], backend=backend)
    expected = torch.full((2,), 130.0, device=device).log()
    torch.testing.assert_close(result.loss_per_dim, expected, atol=1e-4, rtol=0)
    result.loss.backward()
    assert queries.grad.isfinite().all() and queries.grad.abs().max() < 1e-2


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_candidates_masked_but_the_own_positive(kernel_backend, dtype):
    backend, device = kernel_backend
    queries, positives, negatives = random_features(130, 2, 32, dtype, device)
    ids = torch.zeros(130, dtype=torch.int64, device=device)
    for scope in ("shared", "private"):
        result = info_nce(
            queries, positives, negatives, temperature=0.01, positive_ids=ids, negative_ids=ids[:, None].expand(130, 2),
            negative_scope=scope, backend=backend,
        )  # fmt: skip
        torch.testing.assert_close(result.loss, torch.zeros_like(result.loss), atol=1e-4, rtol=0)
        for grad in torch.autograd.grad(result.loss, [queries, positives, negatives]):
            assert grad.abs().max() < 1e-3  # NaN is not


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("taken", ["whole", "tiles"])
def test_where_the_own_positive_has_nearly_all_the_weight(kernel_backend, dtype, taken):
    """Its weight less 1 is small: a rounded weight would leave nothing of it."""
    backend, device = kernel_backend
    queries, noise = random_features(140, None, 64, torch.float32, device)
    positives = (queries + 0.2 * noise).detach()
    features = [x.detach().to(dtype).requires_grad_() for x in (queries, positives)]
    doubles = [x.detach().double().requires_grad_() for x in features]
    with way(taken):
        ours = everything(info_nce, features, 0.1, dims=[48, 64], backend=backend)
    exact = everything(reference.info_nce, doubles, 0.1, dims=[48, 64])
    assert exact["losses"].min() > 0.01 and exact["losses"].max() < 0.1
    tolerance = {torch.bfloat16: 6e-3, torch.float16: 2e-3, torch.float32: 1e-4}[dtype]
    for name in ("queries", "positives"):
        error = (ours[name] - exact[name]).norm(dim=1) / exact[name].norm(dim=1)
        assert error.median() <= tolerance, f"{name}: {error.median()}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_size(kernel_backend, dtype):
    backend, device = kernel_backend
    features = random_features(3, 1, 8192, dtype, device)
    options = {"dims": [16, 4096, 8192], "negative_scope": "shared"}
    ours = everything(info_nce, features, 0.05, backend=backend, **options)
    doubles = [x.detach().double().requires_grad_() for x in features]
    tolerance = {torch.bfloat16: 5e-3, torch.float16: 1e-3, torch.float32: 1e-5}[dtype]
    for name, truth in everything(reference.info_nce, doubles, 0.05, **options).items():
        assert (ours[name] - truth).norm() <= tolerance * truth.norm(), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_very_different_lengths(kernel_backend, dtype):
    """In float16 the weights of the gradient must neither overflow nor vanish."""
    backend, device = kernel_backend
    features = random_features(140, 2, 64, dtype, device)
    with torch.no_grad():
        features[0][3], features[0][5] = features[0][3] * 1e-4, features[0][5] * 3e3
        features[1][4], features[2][6] = features[1][4] * 1e-4, features[2][6] * 3e3
        features[0][7, :16] *= 1e-3  # a small prefix
    options = {"dims": [16, 64], "negative_scope": "shared"}
    ours = everything(info_nce, features, 0.05, backend=backend, **options)
    exact = everything(reference.info_nce, [x.detach().double().requires_grad_() for x in features], 0.05, **options)
    tolerance = {torch.bfloat16: 6e-3, torch.float16: 4e-3, torch.float32: 1e-5}[dtype]
    for name in ("queries", "positives", "negatives"):
        mine, truth = ours[name].flatten(0, -2), exact[name].flatten(0, -2)
        if dtype == torch.float16:  # gradients of long vectors are smaller than any float16
            kept = truth.norm(dim=1) > 1e-6
            mine, truth = mine[kept], truth[kept]
        error = (mine - truth).norm(dim=1) / truth.norm(dim=1)
        assert error.median() <= tolerance and error.max() <= 10 * tolerance, f"{name}: {error.max()}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_passes_through_and_stays_in_its_row(kernel_backend, dtype):
    backend, device = kernel_backend
    queries, positives = random_features(5, None, 32, dtype, device)
    with torch.no_grad():
        queries[2, 3] = torch.nan
    result = info_nce(queries, positives, backend=backend)
    assert result.loss.isnan()
    (grad,) = torch.autograd.grad(result.loss, queries)
    assert grad.isnan().any(1).tolist() == [False, False, True, False, False]


def products_of(emulated, dims, taken, wanted=(True, True, True)):
    """FLOP of matrix products, on tensor cores and by torch, of a call with M = 256 candidates.

    wanted: the gradients of queries, positives and hard negatives.
    """
    features = random_features(128, 1, 512, torch.bfloat16, "cpu")
    features = [x.detach().requires_grad_(is_wanted) for x, is_wanted in zip(features, wanted, strict=True)]
    before, library = emulated.matrix_products(), []

    def counted(out, a, b, *, add):
        library.append(2 * a.numel() * b.shape[1])
        multiply(out, a, b, add=add)

    with pytest.MonkeyPatch.context() as patch, way(taken):
        patch.setattr(kernel_passes, "multiply", counted)
        loss = info_nce(*features, dims=dims, backend="emulated").loss
        if any(wanted):
            loss.backward()
    return 4096 * (emulated.matrix_products() - before) + sum(library)


@pytest.mark.parametrize(
    ("taken", "wanted", "products"),
    [
        ("whole", (True, True, True), 3),
        ("tiles", (True, True, True), 4),
        ("whole", (False, False, False), 1),
        ("whole", (True, False, False), 2),
        ("tiles", (True, False, False), 3),
        ("whole", (False, True, False), 1.5),  # half of the candidates
        ("tiles", (False, False, True), 2.5),
    ],
)
def test_seven_dims_cost_the_products_of_one_and_only_wanted_gradients_any(emulated, taken, wanted, products):
    expected = products * 2 * 128 * 256 * 512
    assert products_of(emulated, [512], taken, wanted) == expected
    assert products_of(emulated, [64, 128, 192, 256, 320, 448, 512], taken, wanted) == expected


@pytest.mark.parametrize("taken", ["whole", "tiles"])
@pytest.mark.parametrize("scope", ["shared", "private"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_wanted_gradients_do_not_depend_on_the_others(kernel_backend, dtype, scope, taken):
    """Each alone, and all but one, equal those of a call that makes all of them."""
    backend, device = kernel_backend
    tau = torch.tensor(0.1, device=device)
    inputs = [x.detach() for x in random_features(70, 2, 48, dtype, device)]

    def gradients(wanted):
        chosen = [x.clone().requires_grad_(is_wanted) for x, is_wanted in zip([*inputs, tau], wanted, strict=True)]
        options = {"dims": [16, 48], "negative_scope": scope, "backend": backend}
        with poisoned_empty(), way(taken):
            loss = info_nce(*chosen[:3], temperature=chosen[3], **options).loss
            return iter(torch.autograd.grad(loss, [x for x in chosen if x.requires_grad]))

    everything = list(gradients([True] * 4))
    for place in range(4):
        for alone in (True, False):
            wanted = [(other == place) == alone for other in range(4)]
            found = gradients(wanted)
            for is_wanted, grad in zip(wanted, everything, strict=True):
                if is_wanted:
                    torch.testing.assert_close(next(found), grad, rtol=0, atol=0)


def test_shared_memory_is_read_without_bank_conflicts(emulated):
    before = emulated.bank_conflicts()
    products_of(emulated, [64, 512], "whole")
    assert emulated.bank_conflicts() == before


@pytest.mark.parametrize("columns", [[8192], [65536], [8192, 57344], [65536, 458752], [262144]])
@pytest.mark.parametrize("dims", [1, 7, 32])
@pytest.mark.parametrize("element", [2, 4])
def test_the_plan_keeps_to_the_workspace(columns, dims, element):
    sizes = workspace.Sizes(columns[0], columns, dims, element, 3584, 0, tile=128, segment=64)
    rows = workspace.whole_rows(sizes)
    if rows is not None:
        assert rows >= 1024 and rows * sum(columns) * dims * element < 256 << 20
    rows, width = workspace.blocks(sizes)
    assert rows * width * dims * element + 4 * 3584 * width < 256 << 20 and min(rows, width) >= 512
    rows, width = workspace.statistics(sizes)
    kept = rows * width * dims * element if element == 4 else 0
    assert kept + rows * sum(columns) // 64 * 12 * dims <= 256 << 20
