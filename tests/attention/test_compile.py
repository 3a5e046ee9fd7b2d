"""Soft-masked attention under torch.compile: how many graphs many values of alpha and scale make, and their results."""

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager
from torch._inductor.compile_fx import compile_fx

from conan_fast import soft_mask_attention, soft_mask_attention_varlen
from tests.support.attention import random_qkv, value_and_grads
from tests.support.comparison import assert_same

OFFSETS = torch.tensor([0, 5, 5, 17], dtype=torch.int32)


def padded(q, k, v, alpha, scale):
    return soft_mask_attention(q[None], k[None], v[None], alpha, scale=scale)[0]


def packed(q, k, v, alpha, scale):
    return soft_mask_attention_varlen(q, k, v, OFFSETS, 12, alpha, scale=scale)


@pytest.fixture(params=[padded, packed])
def attention(request):
    torch._dynamo.reset()
    return request.param


class Compiled:
    """A compiled function that counts its graphs."""

    def __init__(self, function, compiler=aot_eager, **options):
        self.graphs, self.compiler = 0, compiler
        self.call = torch.compile(function, fullgraph=True, backend=self.compile, **options)

    def compile(self, module, inputs):
        self.graphs += 1
        return self.compiler(module, inputs)


def check(function, compiled, alphas, scales):
    """Outputs and gradients of both are the same for all values."""
    inputs = random_qkv(17, dtype=torch.float32)
    for alpha, scale in zip(alphas, scales, strict=True):
        ours = value_and_grads(lambda *x, a=alpha, s=scale: compiled.call(*x, a, s), inputs)
        assert_same(ours, value_and_grads(lambda *x, a=alpha, s=scale: function(*x, a, s), inputs), 1e-6)


ALPHAS = [index / 99 for index in range(100)]


@pytest.mark.parametrize("scale", [None, 0.25])
def test_100_alphas_make_one_dynamic_graph(attention, scale):
    compiled = Compiled(attention, dynamic=True)
    check(attention, compiled, ALPHAS, [scale] * 100)
    assert compiled.graphs == 1


def test_100_scales_make_one_dynamic_graph(attention):
    compiled = Compiled(attention, dynamic=True)
    check(attention, compiled, [0.3] * 100, [0.1 + 0.01 * alpha for alpha in ALPHAS])
    assert compiled.graphs == 1


@pytest.mark.parametrize("dynamic", [True, None])
def test_100_alphas_that_are_tensors_make_one_graph(attention, dynamic):
    compiled = Compiled(attention, dynamic=dynamic)
    check(attention, compiled, map(torch.tensor, ALPHAS), [0.25] * 100)
    assert compiled.graphs == 1


def test_100_alphas_make_two_graphs_by_default(attention):
    """torch.compile takes the first value as a constant."""
    compiled = Compiled(attention)
    check(attention, compiled, ALPHAS, [0.25] * 100)
    assert compiled.graphs == 2


def test_dynamic_shapes_share_the_graph():
    torch._dynamo.reset()
    compiled = Compiled(padded, dynamic=True)
    for tokens in (5, 9, 17):
        inputs = random_qkv(tokens, dtype=torch.float32)
        ours = value_and_grads(lambda *x: compiled.call(*x, 0.3, 0.2), inputs)
        assert_same(ours, value_and_grads(lambda *x: padded(*x, 0.3, 0.2), inputs), 1e-6)
    assert compiled.graphs == 1


def test_inductor(attention):
    compiled = Compiled(attention, compile_fx, dynamic=True)
    check(attention, compiled, [0.0, 0.3, 1.0], [0.2, 0.25, 0.3])
    assert compiled.graphs == 1


@pytest.mark.parametrize(
    ("alpha", "scale", "name"), [(1.5, 0.25, "alpha"), (torch.tensor(-0.1), 0.25, "alpha"), (0.5, -1.0, "scale")]
)
def test_values_out_of_range_raise(attention, alpha, scale, name):
    compiled = torch.compile(attention, dynamic=True, backend="aot_eager")
    inputs = random_qkv(17, dtype=torch.float32)
    compiled(*inputs, 0.5, 0.25)
    with pytest.raises(ValueError, match=f"{name} must be"):
        compiled(*inputs, alpha, scale)
