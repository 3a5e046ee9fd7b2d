"""Which derivatives of soft-masked attention exist, which are refused by name, and what the backward pass computes."""

import gc
import weakref
from itertools import product

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from conan_fast import reference, soft_mask_attention, soft_mask_attention_varlen
from tests.support.attention import offsets, random_qkv, value_and_grads
from tests.support.comparison import assert_same
from tests.support.memory import poisoned_empty

LENGTHS = [5, 0, 9, 3]
SECOND_DERIVATIVES = "soft_mask_attention.* do not support second derivatives"


def packed(q, k, v, alpha=0.5, **options):
    return soft_mask_attention_varlen(q, k, v, offsets(LENGTHS), 9, alpha, **options)


def padded(q, k, v, alpha=0.5, **options):
    return soft_mask_attention(q[None], k[None], v[None], alpha, **options)[0]


@pytest.fixture(params=[padded, packed])
def attention(request):
    return request.param


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_penalty_of_a_gradient_raises(attention, place):
    inputs = random_qkv(17)
    (grad,) = torch.autograd.grad(attention(*inputs).sum(), inputs[place], create_graph=True)
    with pytest.raises(RuntimeError, match=SECOND_DERIVATIVES):
        grad.square().sum().backward()


def test_a_derivative_of_the_gradient_by_the_gradient_of_the_output_raises(attention):
    inputs = random_qkv(17)
    weight = torch.ones_like(inputs[0], requires_grad=True)
    (grad,) = torch.autograd.grad(attention(*inputs), inputs[1], weight, create_graph=True)
    with pytest.raises(RuntimeError, match=SECOND_DERIVATIVES):
        torch.autograd.grad(grad.sum(), weight)


def test_a_penalty_that_flows_through_other_layers_raises(attention):
    """The gradient by x is that of attention, then of a linear map: the penalty reaches attention through both."""
    x, k, v = random_qkv(17)
    map_ = torch.eye(8, dtype=x.dtype, requires_grad=True)
    loss = attention(x @ map_, k, v).square().sum()
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match=SECOND_DERIVATIVES):
        (loss + grad.norm()).backward()


def test_create_graph_alone_changes_nothing(attention):
    inputs = random_qkv(17)
    loss = attention(*inputs).square().sum()
    plain = torch.autograd.grad(loss, inputs, retain_graph=True)
    with_graph = torch.autograd.grad(loss, inputs, create_graph=True)
    assert_same([x.detach() for x in with_graph], plain, 0.0)
    assert_same(torch.autograd.grad(loss, inputs), plain, 0.0)


NEEDED = list(product([False, True], repeat=3))[1:]


@pytest.mark.parametrize("needed", NEEDED)
def test_only_the_needed_gradients_are_returned(attention, needed):
    q, k, v = inputs = random_qkv(17)
    whole = value_and_grads(attention, inputs)[1:]
    for x, wanted in zip(inputs, needed, strict=True):
        x.requires_grad_(wanted)
    some = value_and_grads(lambda *_: attention(q, k, v), [x for x in inputs if x.requires_grad])[1:]
    assert_same(some, [grad for grad, wanted in zip(whole, needed, strict=True) if wanted], 0.0)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("needed", NEEDED)
def test_kernels_compute_only_the_needed_gradients(kernel_backend, needed, deterministic, monkeypatch):
    backend, device = kernel_backend
    q, k, v = inputs = random_qkv(130, heads=(2, 1), size=64, dtype=torch.bfloat16, device=device)
    cu_seqlens = offsets([30, 0, 100], device)

    def attention(*_):
        options = {"deterministic": deterministic, "backend": backend}
        return soft_mask_attention_varlen(q, k, v, cu_seqlens, 100, 0.3, **options)

    whole = value_and_grads(attention, inputs)[1:]
    for x, wanted in zip(inputs, needed, strict=True):
        x.requires_grad_(wanted)
    if not needed[0] or needed == (True, False, False):
        monkeypatch.setattr(torch, "zeros", None)  # the buffer of the atomic additions to dq
    with poisoned_empty():
        some = value_and_grads(attention, [x for x in inputs if x.requires_grad])[1:]
    expected = [grad for grad, wanted in zip(whole, needed, strict=True) if wanted]
    if needed[0]:  # by one kernel or the other, or in another order of additions
        assert (some[0] - expected[0]).norm() <= 3e-3 * expected[0].norm()
        some, expected = some[1:], expected[1:]
    assert_same(some, expected, 0)


def test_nothing_is_kept_where_no_gradient_is_needed(attention):
    inputs = [x.detach() for x in random_qkv(17)]
    kept = [weakref.ref(x) for x in inputs]
    out = attention(*inputs)
    del inputs
    gc.collect()
    assert out.grad_fn is None and all(reference() is None for reference in kept)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(attention, reentrant):
    inputs = random_qkv(17)
    plain = value_and_grads(attention, inputs)
    recomputed = value_and_grads_by_backward(lambda *x: checkpoint(attention, *x, use_reentrant=reentrant), inputs)
    assert_same(recomputed, plain, 0.0)


def value_and_grads_by_backward(function, inputs):
    """As value_and_grads, with .backward(), which a reentrant checkpoint needs."""
    for x in inputs:
        x.grad = None
    out = function(*inputs)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype))
    return [out.detach(), *(x.grad for x in inputs)]


def plain(attention):
    """The definition that `attention` computes."""
    if attention is padded:
        return lambda q, k, v: reference.soft_mask_attention(q[None], k[None], v[None], 0.5)[0]
    return lambda *x: reference.soft_mask_attention_varlen(*x, offsets(LENGTHS), 9, 0.5)


def test_torch_func_grad_and_vjp(attention):
    inputs = [x.detach() for x in random_qkv(17)]

    def loss(function):
        return lambda *x: function(*x).square().sum()

    ours = torch.func.grad(loss(attention), argnums=(0, 1, 2))(*inputs)
    assert_same(ours, torch.func.grad(loss(plain(attention)), argnums=(0, 1, 2))(*inputs))
    out, pullback = torch.func.vjp(attention, *inputs)
    assert_same(pullback(2 * out), ours)


def test_torch_func_vmap_and_gradients_of_each_example(attention):
    """The mapped dimension of q is the last, that of k the first, and v is shared."""
    examples = [random_qkv(17, seed=seed) for seed in range(3)]
    q, k, v = (
        torch.stack([x[0] for x in examples], -1).detach(),
        torch.stack([x[1] for x in examples]).detach(),
        examples[0][2].detach(),
    )
    assert_same(
        [torch.func.vmap(attention, (-1, 0, None))(q, k, v)],
        [torch.func.vmap(plain(attention), (-1, 0, None))(q, k, v)],
    )

    def gradients(function):
        grad = torch.func.grad(lambda *x: function(*x).square().sum(), argnums=(0, 1, 2))
        return torch.func.vmap(grad, (-1, 0, None))(q, k, v)

    assert_same(gradients(attention), gradients(plain(attention)))


def test_torch_func_jacobian(attention):
    q, k, v = (x.detach()[:, :, :2] for x in random_qkv(17, heads=(1, 1)))
    jacobian = torch.func.jacrev(attention, argnums=(0, 2))(q, k, v)
    assert_same(jacobian, torch.func.jacrev(plain(attention), argnums=(0, 2))(q, k, v))


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda f, x: torch.func.jvp(f, (x,), (x,)), "do not support forward-mode derivatives"),
        (lambda f, x: torch.func.hessian(lambda y: f(y).sum())(x), "do not support"),
        (lambda f, x: torch.func.grad(lambda y: torch.func.grad(lambda z: f(z).sum())(y).sum())(x), SECOND_DERIVATIVES),
        (lambda f, x: torch.func.vmap(lambda a: f(x, a))(torch.tensor([0.1, 0.9])), "do not support vmap over alpha"),
    ],
)
def test_other_transforms_raise_an_error_that_names_the_operator(attention, transform, message):
    q, k, v = (x.detach() for x in random_qkv(17))
    with pytest.raises(RuntimeError, match=f"conan_fast: soft_mask_attention .*{message}"):
        transform(lambda x, alpha=0.5: attention(x, k, v, alpha), q)


def test_forward_mode_of_torch_autograd_raises(attention):
    q, k, v = (x.detach() for x in random_qkv(17))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="conan_fast: soft_mask_attention"):
        attention(torch.autograd.forward_ad.make_dual(q, q), k, v)


def test_second_derivatives_of_a_compiled_function_raise(attention):
    inputs = random_qkv(17)
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    (grad,) = torch.autograd.grad(compiled(*inputs).sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        grad.square().sum().backward()


def test_compiled_without_gradients(attention):
    inputs = [x.detach() for x in random_qkv(17)]
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    assert_same([compiled(*inputs)], [attention(*inputs)], 0.0)
    with torch.no_grad():
        assert_same([compiled(*(x.requires_grad_() for x in inputs))], [attention(*inputs)], 0.0)
