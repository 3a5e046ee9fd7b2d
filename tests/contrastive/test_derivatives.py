"""Derivatives beyond `loss.backward()`: second ones, torch.func, checkpoints. What InfoNCE lacks it refuses by name."""

import pytest
import torch
import torch.distributed as dist
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from conan_fast import cosent, info_nce, reference
from conan_fast.contrastive.distributed import ring
from tests.support.comparison import assert_same
from tests.support.contrastive import random_features

NO_SECOND = "info_nce has no second derivatives"


@pytest.fixture
def group_of_one():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.fixture(params=["alone", "gather", "ring"])
def way(request, monkeypatch):
    """Options of info_nce for each of its autograd functions."""
    if request.param == "alone":
        return {}
    group = request.getfixturevalue("group_of_one")
    monkeypatch.setattr(ring, "needed", lambda *_: request.param == "ring")
    return {"group": group}


def inputs():
    """(features, temperature)."""
    return random_features(5, 2, 8), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)


def names(features, tau):
    return dict(zip(("queries", "positives", "negatives", "temperature"), (*features, tau), strict=True))


@pytest.mark.parametrize("by", ["queries", "positives", "negatives", "temperature"])
@pytest.mark.parametrize("of", ["queries", "positives", "negatives", "temperature"])
@pytest.mark.parametrize("scope", ["shared", "private"])
def test_a_gradient_penalty_raises(way, of, by, scope):
    features, tau = inputs()
    tensors = names(features, tau)
    loss = info_nce(*features, temperature=tau, negative_scope=scope, dims=[4, 8], **way).loss
    (grad,) = torch.autograd.grad(loss, tensors[of], create_graph=True)
    with pytest.raises(RuntimeError, match=NO_SECOND):
        torch.autograd.grad(loss + grad.square().sum(), tensors[by], allow_unused=True)


def test_a_gradient_penalty_through_a_model_raises(way):
    """As in training: the features come from parameters, and .backward() is called on loss and penalty together."""
    layer, (queries, positives, _) = torch.nn.Linear(8, 8).double(), random_features(5, 2, 8)
    loss = info_nce(layer(queries), layer(positives), **way).loss
    (grad,) = torch.autograd.grad(loss, queries, create_graph=True)
    with pytest.raises(RuntimeError, match=NO_SECOND):
        (loss + grad.square().sum()).backward()


def test_a_second_derivative_by_the_factor_of_the_loss_raises():
    features, _ = inputs()
    factor = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(info_nce(*features).loss * factor, features[0], create_graph=True)
    with pytest.raises(RuntimeError, match=NO_SECOND):
        torch.autograd.grad(grad.sum(), factor)


def test_a_gradient_penalty_raises_under_torch_compile():
    features, _ = inputs()
    torch._dynamo.reset()
    compiled = torch.compile(lambda *x: info_nce(*x).loss, fullgraph=True, backend="aot_eager")
    (grad,) = torch.autograd.grad(compiled(*features), features[0], create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        torch.autograd.grad(grad.square().sum(), features[1], allow_unused=True)


def test_first_derivatives_with_create_graph_are_the_same(way):
    features, tau = inputs()
    everything = [*features, tau]
    loss = info_nce(*features, temperature=tau, **way).loss
    kept = torch.autograd.grad(loss, everything, create_graph=True)
    again = torch.autograd.grad(loss, everything)
    assert_same([x.detach() for x in kept], again, tolerance=0)
    assert all(x.requires_grad for x in kept)


def test_an_input_may_change_between_forward_and_backward():
    """A queue of negatives that is written over after the loss: only what gets a gradient is kept."""
    queries, positives, negatives = random_features(5, 2, 8)
    queue = negatives.detach()
    expected = torch.autograd.grad(info_nce(queries, positives, queue).loss, queries)
    loss = info_nce(queries, positives, queue).loss
    queue.zero_()
    assert_same(torch.autograd.grad(loss, queries), expected, tolerance=0)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(reentrant):
    features, _ = inputs()
    expected = torch.autograd.grad(info_nce(*features, dims=[4, 8]).loss, features)
    checkpoint(lambda *x: info_nce(*x, dims=[4, 8]).loss, *features, use_reentrant=reentrant).backward()
    assert_same([x.grad for x in features], expected, tolerance=0)


def test_reverse_mode_of_torch_func():
    features, tau = inputs()
    everything = [*features, tau]

    def loss(queries, positives, negatives, temperature):
        return info_nce(queries, positives, negatives, temperature=temperature, dims=[8, 4]).loss

    expected = torch.autograd.grad(loss(*everything), everything)
    plain = [x.detach() for x in everything]
    assert_same(torch.func.grad(loss, argnums=(0, 1, 2, 3))(*plain), expected, tolerance=0)
    value, vjp = torch.func.vjp(loss, *plain)
    assert_same(vjp(2 * torch.ones_like(value)), [2 * x for x in expected], tolerance=1e-14)
    assert_same(torch.func.jacrev(loss, argnums=1)(*plain), expected[1], tolerance=1e-14)
    params = dict(torch.nn.Linear(8, 8).double().named_parameters())
    layer = torch.nn.Linear(8, 8).double()

    def of_model(parameters):
        encoded = torch.func.functional_call(layer, parameters, (plain[0],))
        result = info_nce(encoded, plain[1])
        return result.loss, result.loss_per_dim

    grads, (value, losses) = torch.func.grad_and_value(of_model, has_aux=True)(params)
    mine = torch.autograd.grad(of_model(params)[0], list(params.values()))
    assert_same(list(grads.values()), mine, tolerance=1e-14)
    assert_same(losses.sum(), value.detach(), tolerance=1e-14)


def dual(loss, x):
    with forward_ad.dual_level():
        return loss(forward_ad.make_dual(x, x))


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda loss, x: torch.func.vmap(loss)(torch.stack([x, x])), "info_nce does not support torch.vmap"),
        (lambda loss, x: torch.func.vmap(torch.func.grad(loss))(torch.stack([x, x])), "does not support torch.vmap"),
        (lambda loss, x: torch.func.jvp(loss, (x,), (x,)), "info_nce has no forward-mode derivatives"),
        (lambda loss, x: torch.func.hessian(loss)(x), "info_nce has no forward-mode derivatives"),
        (dual, "info_nce has no forward-mode derivatives"),
        (lambda loss, x: torch.func.grad(lambda y: torch.func.grad(loss)(y).square().sum())(x), NO_SECOND),
        (lambda loss, x: torch.autograd.functional.hessian(loss, x), NO_SECOND),
    ],
)
def test_what_there_is_not_is_refused_by_name(transform, message):
    queries, positives, _ = (x.detach() for x in random_features(5, 2, 8))
    with pytest.raises(RuntimeError, match=message):
        transform(lambda x: info_nce(x, positives).loss, queries)


def second_derivatives(function, pairs, labels, tau, **options):
    """Of a gradient penalty."""
    grads = torch.autograd.grad(function(*pairs, labels, temperature=tau, **options), [*pairs, tau], create_graph=True)
    return torch.autograd.grad(sum(x.square().sum() for x in grads), [*pairs, tau])


@pytest.mark.parametrize("labels", [torch.tensor([0, 1, 2, 2, 1, 0, 3]), torch.tensor([0, 1, torch.nan, 2, 1, 0, 3])])
def test_cosent_has_second_derivatives(labels):
    """A zero vector among the features: its norm must not make NaN."""
    pairs, tau = random_features(7, None, 6), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        pairs[0][1] = 0
    options = {"dims": [2, 6], "dim_weights": [0.5, 1.0]}
    ours = second_derivatives(cosent, pairs, labels, tau, **options)
    assert_same(ours, second_derivatives(reference.cosent, pairs, labels, tau, **options), tolerance=1e-9)
