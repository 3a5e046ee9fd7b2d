"""The operators in torch: schema, shape functions, torch.compile without a graph break."""

import pytest
import torch
from torch.library import opcheck

from conan_fast import cosent, info_nce, soft_mask_attention, soft_mask_attention_varlen
from tests.support.attention import random_qkv

OFFSETS = torch.tensor([0, 5, 5, 17], dtype=torch.int32)


def inputs(*tokens):
    """q with 6 heads, k and v with 2."""
    return [x.detach() for x in random_qkv(*tokens, heads=(6, 2), dtype=torch.float32)]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("alpha_tensor", "scale_tensor"), [(None, None), (torch.tensor(0.3), torch.tensor(0.4))])
def test_attention_operators(packed, alpha_tensor, scale_tensor):
    q, k, v = inputs(17) if packed else inputs(3, 17)
    settings = (OFFSETS if packed else None, alpha_tensor, scale_tensor, 12, 0.3, 0.35, "key", False, "torch")
    opcheck(torch.ops.conan_fast.attention_forward.default, (q, k, v, *settings))
    saved = q, k, v, *torch.ops.conan_fast.attention_forward(q, k, v, *settings)
    for needed in ([True, True, True], [True, False, False], [False, True, False], [False, False, True]):
        opcheck(torch.ops.conan_fast.attention_backward.default, (saved[3].clone(), *saved, needed, *settings))


@pytest.mark.parametrize("wanted", [[False] * 5, [True] * 5, [False, True, False, False, True]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_info_nce_operator(wanted, dtype):
    x = torch.randn(7, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    shared, private, ids = x.repeat(2, 1), x[:, None].repeat(1, 2, 1), torch.arange(7)
    arguments = (x, x.clone(), shared, private, torch.tensor(0.1), ids, ids, None, None, [4, 8], [1.0, 2.0], 0, 7)
    opcheck(torch.ops.conan_fast.info_nce_sweep.default, (*arguments, wanted, "torch"))
    one_dim = (x, x.clone(), shared, None, torch.tensor(0.1), ids, ids, None, None, [8], [1.0], 0, 7)
    no_private = [*wanted[:3], False, wanted[4]]
    opcheck(torch.ops.conan_fast.info_nce_sweep.default, (*one_dim, no_private, "torch"))


def test_the_operator_of_a_compiled_backward_pass():
    kept, features = [torch.ones(3, 4), torch.tensor(2.0)], [torch.ones(3, 4).bfloat16(), torch.tensor(3.0)]
    opcheck(torch.ops.conan_fast.info_nce_scaled.default, (kept, torch.tensor(5.0), features))


def all_operators(q, k, v, alpha):
    padded = soft_mask_attention(q, k, v, alpha).square().sum()
    packed = soft_mask_attention_varlen(q[0], k[0], v[0], OFFSETS, 12, alpha).square().sum()
    dims = {"dims": [8, 4], "temperature": 0.1}
    contrastive = info_nce(q[:, 0, 0], k[:, 0, 0], v[:, 0], negative_scope="private", **dims).loss
    return padded + packed + contrastive + cosent(q[:, 0, 0], k[:, 0, 0], torch.arange(3), **dims)


@pytest.mark.parametrize("alpha", [0.3, torch.tensor(0.3)])
def test_compile_without_graph_break(alpha):
    qkv = [x.requires_grad_() for x in inputs(3, 17)]
    compiled = torch.compile(all_operators, fullgraph=True, backend="aot_eager")
    eager = torch.autograd.grad(all_operators(*qkv, alpha), qkv)
    traced = torch.autograd.grad(compiled(*qkv, alpha), qkv)
    torch.testing.assert_close(traced, eager)
