"""CoSENT against the plain definition over all pairs, in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conan_fast import cosent, reference


def random_pairs(rows, size, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for _ in "ab"]


def everything(function, pairs, labels, temperature, **options):
    tau = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    loss = function(*pairs, labels, temperature=tau, **options)
    *grads, grad_tau = torch.autograd.grad(loss * 1.7, [*pairs, tau])
    return loss, *grads, grad_tau * temperature  # by log temperature: free of the factor 1 / t^2 on roundings


@settings(deadline=None, max_examples=40)
@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=20), size=st.integers(1, 9), as_float=st.booleans(),
    temperature=st.sampled_from([0.01, 0.05, 1.0]), zero=st.booleans(), data=st.data(), seed=st.integers(0, 99),
)  # fmt: skip
def test_equals_reference(labels, size, as_float, temperature, zero, data, seed):
    labels = torch.tensor(labels, dtype=torch.float32 if as_float else torch.int64) / (2.5 if as_float else 1)
    dims = data.draw(st.one_of(st.none(), st.lists(st.integers(1, size), min_size=1, max_size=3, unique=True)))
    weights = None if dims is None else [0.5 + index for index in range(len(dims))]
    pairs = random_pairs(len(labels), size, seed)
    if zero:
        with torch.no_grad():
            pairs[0][len(labels) // 2] = 0
    ours = everything(cosent, pairs, labels, temperature, dims=dims, dim_weights=weights)
    plain = everything(reference.cosent, pairs, labels, temperature, dims=dims, dim_weights=weights)
    for mine, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-10, rtol=1e-10)


def test_loss_written_out():
    """Cosines 1, 0 and -1 with labels 0, 1, 1: two pairs in the wrong order, tied labels form none."""
    a = torch.tensor([[1.0, 0.0]] * 3, dtype=torch.float64)
    b = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    loss = cosent(a, b, torch.tensor([0, 1, 1]), temperature=1.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(1) + math.exp(2)))


@pytest.mark.parametrize("labels", [[0.5], [2, 2, 2]])
def test_fewer_than_two_labels_give_0_and_no_gradient(labels):
    a, b = random_pairs(len(labels), 4)
    loss = cosent(a, b, torch.tensor(labels))
    loss.backward()
    assert loss.item() == 0.0
    assert not a.grad.any() and not b.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_at_temperature_001(dtype):
    a, b = random_pairs(50, 16, dtype=dtype)
    labels = torch.arange(50) // 3
    loss = cosent(a, b, labels, temperature=0.01)
    loss.backward()
    exact = reference.cosent(a.detach().double(), b.detach().double(), labels, temperature=0.01)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, atol=0, rtol=1e-5)
    assert a.grad.dtype == dtype and a.grad.isfinite().all() and a.grad.any()


def test_ten_thousand_pairs_keep_nothing_of_size_n_squared():
    a, b = random_pairs(10_000, 2, dtype=torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        loss = cosent(a, b, torch.arange(10_000) % 7)
    loss.backward()
    assert kept and max(kept) <= 10_001 * 2
    assert a.grad.isfinite().all()


NAN, INF = torch.nan, torch.inf
# For five pairs. The int64 ones differ by less than float64 tells apart.
LABELS_OF_ALL_KINDS = [
    *[torch.tensor([0, NAN, 2, NAN, 1], dtype=dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64)],
    torch.tensor([0, 1, 3, NAN, 2]),
    torch.tensor([NAN] * 5),
    torch.tensor([INF, NAN, -INF, 0, INF]),
    torch.tensor([2**53 + 1, 2**53, 2**62, 2**62 - 1, -(2**62)]),
    *[torch.tensor([3, 100, 3, 0, 7], dtype=dtype) for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32)],
]


@pytest.mark.parametrize("labels", LABELS_OF_ALL_KINDS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_labels_of_all_kinds(labels, seed):
    """NaN is neither above nor below any label, so it forms no pair, also where its pair's features are NaN."""
    pairs = random_pairs(5, 4, seed)
    ours, plain = (everything(function, pairs, labels, 0.05) for function in (cosent, reference.cosent))
    for mine, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-10, rtol=1e-10)
    with torch.no_grad():
        pairs[0][labels.isnan()] = NAN
    torch.testing.assert_close(cosent(*pairs, labels).detach(), ours[0].detach(), atol=1e-10, rtol=1e-10)


def test_mixed_dtypes_under_autocast():
    """The widest counts; without autocast they are refused."""
    a, b = random_pairs(20, 8, dtype=torch.float32)
    a = a.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cosent(a, b, torch.arange(20))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, cosent(a.float(), b, torch.arange(20)))
    assert [x.dtype for x in torch.autograd.grad(loss, [a, b])] == [torch.bfloat16, torch.float32]
    with pytest.raises(TypeError, match="b must have the dtype of a"):
        cosent(a, b, torch.arange(20))


def test_autocast_does_not_round():
    a, b = random_pairs(20, 8, dtype=torch.float32)
    labels = torch.arange(20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = cosent(a, b, labels)
    assert torch.equal(inside, cosent(a, b, labels))


X = torch.ones(3, 4)
LABELS = torch.arange(3)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"a": X[0]}, ValueError, r"a must have shape \[N, D\]"),
        ({"b": X[:2]}, ValueError, "a and b must have one shape"),
        ({"a": X[:0], "b": X[:0], "labels": LABELS[:0]}, ValueError, "a and b must have one shape with N, D >= 1"),
        ({"b": X.double()}, TypeError, "b must have the dtype of a"),
        ({"a": X.long(), "b": X.long()}, TypeError, "a must be bfloat16"),
        ({"labels": [1, 2, 3]}, TypeError, "labels must be a torch.Tensor"),
        ({"labels": LABELS[:2]}, ValueError, "labels must have one entry per row"),
        ({"labels": LABELS > 1}, TypeError, "labels must be integers or floats"),
        ({"labels": LABELS.cfloat()}, TypeError, "labels must be integers or floats"),
        ({"labels": LABELS.to("meta")}, ValueError, "labels must be on cpu"),
        ({"temperature": -0.1}, ValueError, "temperature must be positive"),
        ({"temperature": torch.tensor(0.0)}, ValueError, "temperature must be positive"),
        ({"temperature": torch.tensor(torch.nan)}, ValueError, "temperature must be positive"),
        ({"dims": [9]}, ValueError, "dims must lie in 1..4"),
        ({"dims": [1, 2], "dim_weights": [1.0]}, ValueError, "dim_weights must have one weight per dim"),
    ],
)
def test_refuses(changes, error, message):
    with pytest.raises(error, match=message):
        cosent(**{"a": X, "b": X, "labels": LABELS} | changes)
