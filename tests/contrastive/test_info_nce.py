"""InfoNCE against the plain definition in float64: values, gradients, ids, scopes, Matryoshka dims, chunks."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conan_fast import info_nce, reference
from tests.support.comparison import assert_same
from tests.support.contrastive import everything, random_batches, random_features, random_ids, small_chunks
from tests.support.memory import poisoned_memory


@pytest.fixture(autouse=True, scope="module")
def unwritten_memory_is_nan():
    with poisoned_memory():
        yield


@settings(deadline=None, max_examples=60)
@given(
    batch=random_batches(
        st.integers(1, 14), lambda _: st.one_of(st.none(), st.integers(0, 4)), sizes=st.integers(1, 12)
    ),
    temperature=st.sampled_from([0.01, 0.05, 1.0]), workspace=st.sampled_from([1, 2000, 6000, 256 << 20]),
    columns=st.sampled_from([1, 3, 8, 2048]),
)  # fmt: skip
def test_equals_reference(batch, temperature, workspace, columns):
    features, options = batch.inputs()
    with small_chunks(workspace, columns):
        ours = everything(info_nce, features, temperature, **options)
    assert_same(ours, everything(reference.info_nce, features, temperature, **options))


def test_loss_written_out():
    """Two queries, unit vectors, temperature 1: cosines [[1, 0], [0, -1]]."""
    queries = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    positives = torch.tensor([[3.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    e = torch.tensor(1.0, dtype=torch.float64).exp()
    expected = (torch.log(e + 1) - 1 + torch.log(1 + 1 / e) + 1) / 2
    torch.testing.assert_close(info_nce(queries, positives, temperature=1.0).loss, expected)


def test_per_dim_losses_equal_separate_calls_and_come_in_the_callers_order():
    features, dims, weights = random_features(9, 3, 16), [16, 4, 9], [1.0, 0.5, 2.0]
    together = info_nce(*features, dims=dims, dim_weights=weights)
    alone = torch.stack([info_nce(*(x[..., :dim] for x in features)).loss for dim in dims]).detach()
    torch.testing.assert_close(together.loss_per_dim, alone, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(together.loss, (alone * torch.tensor(weights, dtype=torch.float64)).sum())
    assert not together.loss_per_dim.requires_grad and not together.negative_scores.requires_grad


def test_an_id_equal_to_the_own_positive_is_no_negative():
    """A duplicate of the positive that is masked by its id does not change the loss."""
    queries, positives, negatives = random_features(4, 1, 8)
    with torch.no_grad():
        negatives[2, 0] = positives[1]
    ids = torch.arange(4)
    marked = info_nce(queries[1:2], positives[1:2], negatives[2:3], positive_ids=ids[1:2], negative_ids=ids[1:2, None])
    torch.testing.assert_close(marked.loss, torch.zeros((), dtype=torch.float64), atol=1e-12, rtol=0)
    assert info_nce(queries[1:2], positives[1:2], negatives[2:3]).loss > 0.5


def test_private_negatives_touch_only_their_own_query():
    queries, positives, negatives = random_features(5, 2, 8)
    (grad,) = torch.autograd.grad(info_nce(queries, positives, negatives, negative_scope="private").loss, queries)
    with torch.no_grad():
        negatives[3] *= -1
    (changed,) = torch.autograd.grad(info_nce(queries, positives, negatives, negative_scope="private").loss, queries)
    same = (grad - changed).abs().amax(1) < 1e-14
    assert same.tolist() == [True, True, True, False, True]


def test_zero_vectors_have_similarity_0_and_no_gradient():
    queries, positives = random_features(4, None, 8, dtype=torch.float32)
    with torch.no_grad():
        queries[1], positives[2] = 0, 0
    loss = info_nce(queries, positives).loss
    loss.backward()
    assert loss.isfinite() and queries.grad.isfinite().all() and positives.grad.isfinite().all()
    assert not queries.grad[1].any() and not positives.grad[2].any()
    assert queries.grad[0].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_identical_embeddings(dtype):
    queries = torch.ones(6, 8, dtype=dtype, requires_grad=True)
    result = info_nce(queries, queries.detach(), temperature=0.01)
    torch.testing.assert_close(result.loss, torch.tensor(6.0).log(), atol=1e-4, rtol=0)
    result.loss.backward()
    assert queries.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_at_temperature_001_is_close_to_float64_on_the_same_inputs(dtype):
    features = random_features(40, 3, 64, dtype=dtype)
    exact = [x.detach().double().requires_grad_() for x in features]
    options = {"temperature": 0.01, "dims": [16, 64]}
    ours, plain = info_nce(*features, **options), reference.info_nce(*exact, **options)
    assert ours.loss.dtype == torch.float32
    torch.testing.assert_close(ours.loss.double(), plain.loss, atol=0, rtol=1e-5)
    grads = torch.autograd.grad(ours.loss, features)
    tolerance = {torch.bfloat16: 4e-3, torch.float16: 2e-3, torch.float32: 1e-5}[dtype]
    for mine, other in zip(grads, torch.autograd.grad(plain.loss, exact), strict=True):
        assert mine.dtype == dtype
        assert (mine - other).norm() <= tolerance * other.norm()


def test_a_loss_scaler_saves_float16_gradients_from_underflow():
    """A gradient below float16's smallest number is there once the loss is scaled before backward."""
    queries, positives = (x.detach() for x in random_features(8, None, 16))
    queries = (queries * 2000).half().requires_grad_()
    exact = queries.detach().double().requires_grad_()
    (scaled,) = torch.autograd.grad(info_nce(queries, positives.half(), temperature=10.0).loss * 2.0**16, queries)
    (plain,) = torch.autograd.grad(reference.info_nce(exact, positives.half().double(), temperature=10.0).loss, exact)
    assert plain.abs().median() < 1e-6
    assert (scaled.double() / 2.0**16 - plain).norm() <= 2e-3 * plain.norm()


@pytest.mark.parametrize("chunks", [(1, 1), (6000, 3), (256 << 20, 2048)])
@pytest.mark.parametrize("dims", [[8], [4, 8]])
@pytest.mark.parametrize("scope", ["shared", "private"])
def test_each_gradient_is_the_same_whichever_others_are_asked_for(scope, dims, chunks):
    features, ids = random_features(9, 2, 8), random_ids(9, 2)
    tau = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)

    def gradients(wanted):
        chosen = [x.detach().requires_grad_(y) for x, y in zip([*features, tau], wanted, strict=True)]
        loss = info_nce(*chosen[:3], temperature=chosen[3], dims=dims, negative_scope=scope, **ids).loss
        return torch.autograd.grad(loss, [x for x in chosen if x.requires_grad])

    with small_chunks(*chunks):
        everything = gradients([True] * 4)
        for wanted in itertools.product([False, True], repeat=4):
            if any(wanted):
                assert_same(gradients(wanted), list(itertools.compress(everything, wanted)), tolerance=1e-13)


@pytest.mark.parametrize("scope", ["shared", "private"])
@pytest.mark.parametrize(
    ("dtypes", "widest"),
    [
        ((torch.bfloat16, torch.float32, torch.float32), torch.float32),
        ((torch.float32, torch.float32, torch.bfloat16), torch.float32),
        ((torch.bfloat16, torch.float16, torch.float16), torch.float32),
        ((torch.float16, torch.float64, torch.float32), torch.float64),
        ((torch.bfloat16, torch.bfloat16, torch.bfloat16), torch.bfloat16),
    ],
)
def test_mixed_dtypes_under_autocast(dtypes, widest, scope):
    """The widest counts, inputs that agree stay as they are, and each gradient has its input's dtype."""
    features = [x.detach().to(y).requires_grad_() for x, y in zip(random_features(6, 2, 16), dtypes, strict=True)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = info_nce(*features, negative_scope=scope)
    outside = info_nce(*(x.to(widest) for x in features), negative_scope=scope)
    assert_same(inside.loss, outside.loss, tolerance=0)
    assert_same(inside.negative_scores, outside.negative_scores, tolerance=0)
    grads = torch.autograd.grad(inside.loss, features)
    assert_same(grads, torch.autograd.grad(outside.loss, features), tolerance=0)
    assert [x.dtype for x in grads] == list(dtypes)


def test_integers_are_refused_under_autocast_too():
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(TypeError, match="positives must have the dtype"):
        info_nce(X, X.long())


def test_no_gradient_asked_for_gives_the_same_loss():
    features = random_features(9, 2, 8)
    with torch.no_grad():
        quiet = info_nce(*features, dims=[4, 8])
    torch.testing.assert_close(quiet.loss, info_nce(*features, dims=[4, 8]).loss.detach(), atol=1e-14, rtol=0)
    assert not quiet.loss.requires_grad


def test_backward_twice_gives_the_same_gradient_twice():
    """The kept gradients are overwritten only where the graph is freed; a factor reaches them either way."""
    features = random_features(6, 2, 8)
    loss = info_nce(*features, dims=[4, 8]).loss
    (loss * 3.0).backward(retain_graph=True)
    first = [x.grad.clone() for x in features]
    (loss * 3.0).backward(retain_graph=True)
    assert_same([x.grad for x in features], [2 * x for x in first], tolerance=1e-14)
    (loss * -6.0).backward()
    assert_same([x.grad for x in features], [0 * x for x in first], tolerance=1e-14)


def test_strided_inputs():
    features = random_features(9, 2, 8)
    wide = [torch.stack([x, -x], -1).flatten(-2)[..., ::2] for x in features]
    assert not wide[0].is_contiguous()
    torch.testing.assert_close(info_nce(*wide, dims=[3, 8]).loss, info_nce(*features, dims=[3, 8]).loss)


def test_nan_passes_through():
    features = random_features(4, 1, 8)
    with torch.no_grad():
        features[0][2, 3] = torch.nan
    assert info_nce(*features).loss.isnan()


def test_nothing_of_size_n_times_m_is_kept():
    queries, positives = random_features(200, None, 4)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        info_nce(queries, positives, dims=[2, 4])
    assert kept and max(kept) <= queries.numel()


X = torch.ones(3, 4)
NEGATIVES = torch.ones(3, 2, 4)
IDS = torch.arange(3)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"queries": X[0]}, ValueError, r"queries must have shape \[N, D\]"),
        ({"positives": None}, TypeError, "positives must be a torch.Tensor"),
        ({"positives": X[:2]}, ValueError, "positives must have shape"),
        ({"queries": X[:0], "positives": X[:0]}, ValueError, "queries must have at least one row"),
        ({"queries": X.int(), "positives": X.int()}, TypeError, "queries must be bfloat16"),
        ({"positives": X.double()}, TypeError, "positives must have the dtype of queries"),
        ({"positives": X.to("meta")}, ValueError, "positives must be on the device of queries"),
        ({"negatives": X}, ValueError, r"negatives must have shape \[N, K, D\]"),
        ({"negatives": NEGATIVES[:2]}, ValueError, r"negatives must have shape \[3, K, 4\]"),
        ({"negatives": NEGATIVES.half()}, TypeError, "negatives must have the dtype"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive"),
        ({"temperature": float("nan")}, ValueError, "temperature must be positive"),
        ({"temperature": torch.tensor(-1.0)}, ValueError, "temperature must be positive"),
        ({"temperature": torch.ones(1)}, ValueError, "temperature as a tensor must have no dimension"),
        ({"temperature": "low"}, TypeError, "temperature must be a float"),
        ({"dims": []}, ValueError, "dims must name at least one"),
        ({"dims": [0]}, ValueError, r"dims must lie in 1..4"),
        ({"dims": [5]}, ValueError, r"dims must lie in 1..4"),
        ({"dims": [2, 2]}, ValueError, "dims must not repeat"),
        ({"dims": [2.0]}, TypeError, "dims must be ints"),
        ({"dims": [2, 4], "dim_weights": [1.0]}, ValueError, "dim_weights must have one weight per dim"),
        ({"dim_weights": [float("inf")]}, ValueError, "dim_weights must be finite"),
        ({"positive_ids": IDS.int()}, TypeError, "positive_ids must be an int64"),
        ({"positive_ids": IDS[:2]}, ValueError, "positive_ids must have shape"),
        ({"negatives": NEGATIVES, "negative_ids": IDS[:, None].expand(3, 2)}, ValueError, "negative_ids need"),
        ({"positive_ids": IDS, "negative_ids": IDS[:, None]}, ValueError, "negative_ids need"),
        (
            {"negatives": NEGATIVES, "positive_ids": IDS, "negative_ids": IDS},
            ValueError,
            r"negative_ids must have shape \[3, 2\]",
        ),
        ({"negative_scope": "own"}, ValueError, "negative_scope must be one of"),
        ({"group": object()}, ValueError, "group needs torch.distributed to be initialised"),
    ],
)
def test_refuses(changes, error, message):
    with pytest.raises(error, match=message):
        info_nce(**{"queries": X, "positives": X} | changes)
