"""The peers of attention that need a GPU or a package: their soft mask, and how they call what they measure.

Each package is replaced by its signature around plain torch: an argument of another name, layout or scale shows.
"""

import operator
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import flex_attention as torch_flex

from benchmarks.attention.cases import Case, Workload
from benchmarks.attention.peers import IMPLEMENTATIONS, flash_attention, flex, xformers_attention
from benchmarks.suite import NotRun, guarded
from conan_fast import reference
from tests.benchmarks.fakes import declared

CPU = torch.device("cpu")
ALL = {i.name: i for i in IMPLEMENTATIONS}


def workload(head_dim):
    return Workload(Case(batch=2, length=33, head_dim=head_dim, heads=4, kv_heads=2, element_size=4), CPU)


def scores_of(q, k, scale):
    k = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)
    return torch.einsum("bihd,bjhd->bhij", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)


def attended(scores, v):
    v = v.repeat_interleave(scores.shape[1] // v.shape[2], dim=2)
    return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v)


@declared(
    "q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, "
    "deterministic=False, return_attn_probs=False"
)
def version_2(given):
    assert given.dropout_p == 0 and not given.causal
    return attended(scores_of(given.q, given.k, given.softmax_scale), given.v)


@declared(
    "q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None, "
    "window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, "
    "sm_margin=0, return_attn_probs=False"
)
def version_3(given):
    assert not given.causal
    return attended(scores_of(given.q, given.k, given.softmax_scale), given.v)


def version_3_with_logsumexp(*args, **options):
    return version_3(*args, **options), None


@declared(
    "q, k, v, qv=None, gather_kv_indices=None, softmax_scale=None, causal=False, window_size=(None, None), "
    "learnable_sink=None, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, score_mod=None, "
    "score_mod_bwd=None, mask_mod=None, aux_tensors=None, aux_scalars=None, block_sparse_tensors=None, "
    "block_sparse_tensors_bwd=None, return_lse=False, gather_bwd_recompute_p=False, gather_bwd_token_chunk=None"
)
def version_4(given):
    assert given.qv is None and not given.causal and given.q.shape[-1] % 32 == 0
    scores = scores_of(given.q, given.k, given.softmax_scale)
    if given.score_mod is not None:
        assert all(x.dtype == torch.float32 for x in given.aux_tensors)  # that of the accumulator

        def modified(i, j):
            indices = {"q_idx": torch.tensor([i]), "kv_idx": torch.tensor([j])}
            context = {"seqlen_info": None, "aux_tensors": given.aux_tensors}
            score = scores[..., i, j, None]
            assert given.score_mod_bwd(score, score, 0, 0, **indices, **context) is score
            return given.score_mod(score, 0, 0, **indices, **context)

        length = range(given.q.shape[1])
        scores = torch.stack([torch.cat([modified(i, j) for j in length], dim=-1) for i in length], dim=-2)
    return attended(scores, given.v), None


class Fragment:
    """Of CuTe: elements in registers."""

    def __init__(self, size, dtype):
        self.values = torch.zeros(size, dtype=dtype)

    def store(self, values):
        self.values.copy_(values)

    def load(self):
        return self.values

    def __getitem__(self, index):
        return self.values[index]

    def __setitem__(self, index, value):
        self.values[index] = value


@declared("query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None, output_dtype=None")
def memory_efficient_attention(given):
    query, key, value, attn_bias, scale = given.query, given.key, given.value, given.attn_bias, given.scale
    assert given.p == 0 and key.shape == query.shape == value.shape and query.stride(-1) == 1
    scores = scores_of(query, key, scale)
    if attn_bias is not None:
        assert attn_bias.shape == scores.shape and attn_bias.dtype == query.dtype
        assert attn_bias.stride(-1) == 1 and all(x % 8 == 0 for x in attn_bias.stride()[:-1])
        assert attn_bias.untyped_storage().nbytes() < 2 * 4 * query.shape[1] ** 2  # expanded, not copied
        scores = scores + attn_bias
    return attended(scores, value)


@pytest.fixture
def remove(monkeypatch):
    return lambda *names: [monkeypatch.setitem(sys.modules, name, None) for name in names]


@pytest.fixture
def flash_attention_4(install):
    cute = install("cutlass.cute", jit=lambda f: f, make_rmem_tensor=Fragment, where=torch.where)
    install("cutlass", cute=cute, Int32=torch.int32, Float32=torch.float32)
    install("flash_attn")
    install("flash_attn.cute", flash_attn_func=version_4)


def test_each_role_comes_together_and_what_compiles_longest_last():
    roles = [i.role for i in IMPLEMENTATIONS]
    assert roles == sorted(roles, key=("ours", "bound", "rival").index)
    assert [i.name for i in IMPLEMENTATIONS if i.role == "rival"][-1] == "eager_compiled"
    assert len(ALL) == len(roles)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
class TestFlex:
    @pytest.fixture(autouse=True)
    def allowed_on_a_cpu(self, monkeypatch):
        """It refuses inputs that need gradients there, but can compute them while it is not compiled."""
        monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None, raising=False)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    @pytest.mark.parametrize("alpha", [0.0, 0.03, 0.3, 1.0])
    @pytest.mark.parametrize("length", [2, 33, 64])
    def test_score_mod_is_the_soft_mask(self, length, alpha, dtype):
        torch.manual_seed(0)
        q, k, v, grad_out = (torch.randn(2, length, heads, 16, dtype=dtype) for heads in (4, 2, 2, 4))
        leaves = [x.requires_grad_() for x in (q, k, v)]
        soft_mask = flex.score_mod(flex.key_bias(length, alpha, CPU))
        heads_first = [x.transpose(1, 2) for x in leaves]
        out = torch_flex.flex_attention(*heads_first, score_mod=soft_mask, enable_gqa=True).transpose(1, 2)
        expected = reference.soft_mask_attention(*leaves, alpha)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)  # the table is float32
        for grads in zip(*(torch.autograd.grad(x, leaves, grad_out) for x in (out, expected)), strict=True):
            torch.testing.assert_close(*grads, rtol=1e-5, atol=3e-6)

    @pytest.mark.parametrize("head_dim", [16, 112])
    def test_uncompiled_is_right(self, head_dim):
        workload(head_dim).check(replace(ALL["flex"], build=flex.uncompiled))


def test_flex_is_skipped_on_a_cpu():
    with pytest.raises(NotRun, match="no backward pass on a CPU"):
        workload(16).check(ALL["flex"])


@pytest.mark.parametrize("head_dim", [16, 112, 128])
class TestFlashAttention:
    def test_version_2(self, install, head_dim):
        install("flash_attn", flash_attn_func=version_2)
        workload(head_dim).check(ALL["flash_attention_2_unmasked"])

    @pytest.mark.parametrize("function", [version_3, version_3_with_logsumexp])
    def test_version_3_is_a_package(self, install, remove, head_dim, function):
        install("flash_attn_3")
        install("flash_attn_3.flash_attn_interface", flash_attn_func=function)
        remove("flash_attn_interface")
        workload(head_dim).check(ALL["flash_attention_3_unmasked"])

    def test_version_3_was_a_module(self, install, remove, head_dim):
        remove("flash_attn_3")
        install("flash_attn_interface", flash_attn_func=version_3_with_logsumexp)
        workload(head_dim).check(ALL["flash_attention_3_unmasked"])

    @pytest.mark.parametrize("name", ["flash_attention_4", "flash_attention_4_unmasked"])
    def test_version_4(self, flash_attention_4, head_dim, name):
        workload(head_dim).check(ALL[name])


def test_score_mod_of_flash_attention_4(flash_attention_4):
    options = flash_attention._score_mod(Case(1, 10, 16), CPU)  # alpha l = 3
    scores = [
        options["score_mod"](
            torch.zeros(1), 0, 0, torch.tensor([4]), torch.tensor([j]), SimpleNamespace(), options["aux_tensors"]
        )
        for j in range(10)
    ]
    expected = torch.tensor([1, 1, 1, 1, 1, 3 / 6, 3 / 7, 3 / 8, 3 / 9, 3 / 10])
    torch.testing.assert_close(torch.cat(scores).exp(), expected)


@pytest.mark.parametrize("head_dim", [16, 112])
@pytest.mark.parametrize("name", ["xformers_unmasked", "xformers_dense_mask"])
def test_xformers(install, name, head_dim):
    install("xformers")
    install("xformers.ops", memory_efficient_attention=memory_efficient_attention)
    workload(head_dim).check(ALL[name])


@pytest.mark.parametrize(
    "implementation",
    [*flash_attention.IMPLEMENTATIONS, *xformers_attention.IMPLEMENTATIONS],
    ids=operator.attrgetter("name"),
)
def test_what_is_not_installed_is_named(remove, implementation):
    remove("flash_attn", "flash_attn_3", "flash_attn_interface", "xformers")
    with pytest.raises(NotRun, match=r"^is not installed: .*(flash_attn|xformers)"), guarded(CPU, implementation):
        workload(16).check(implementation)


def test_flash_attention_4_without_its_language(remove, flash_attention_4):
    remove("cutlass")
    with pytest.raises(NotRun, match=r"^is not installed: .*cutlass"), guarded(CPU, ALL["flash_attention_4"]):
        workload(16).check(ALL["flash_attention_4"])
