"""The peers of the contrastive suite that need a GPU or a package: how they call what they measure.

Each package is replaced by its signature around plain torch: an argument of another name, layout or scale shows.
"""

import operator
import sys
from types import ModuleType

import pytest
import torch
from torch.nn import functional

from benchmarks.contrastive.cases import Case
from benchmarks.contrastive.peers import cut_cross_entropy, eager, inf_cl, liger
from benchmarks.contrastive.shape import PAPER, Shape, matryoshka
from benchmarks.contrastive.suite import SUITE
from benchmarks.peer import NotRun, leaves_out

CPU = torch.device("cpu")
ALL = {i.name: i for i in SUITE.implementations}
PACKAGES = ("cut_cross_entropy", "liger_kernel", "inf_cl")
OF_PACKAGES = (*cut_cross_entropy.IMPLEMENTATIONS, *liger.IMPLEMENTATIONS, *inf_cl.IMPLEMENTATIONS)
MORE_CANDIDATES, AS_MANY = Shape(24, 2, 48, (16, 32, 48), 4), Shape(24, 0, 48, (48,), 4)


def mean_loss(queries, candidates, labels):
    assert queries.shape[1] == candidates.shape[1] and queries.dtype == candidates.dtype
    torch.testing.assert_close(candidates.detach().norm(dim=1), torch.ones(len(candidates)))
    assert labels.dtype == torch.int64 and labels.shape == queries.shape[:1]
    return functional.cross_entropy(queries @ candidates.T, labels)


class CutCrossEntropy:
    """How it was asked to be computed."""

    def __init__(self):
        self.asked = []

    def of_the_repository(
        self,
        e,
        c,
        targets,
        bias=None,
        ignore_index=-100,
        softcap=None,
        reduction="mean",
        shift=0,
        return_lse=False,
        filter_eps="auto",
        accum_e_fp32=False,
        accum_c_fp32=False,
        filter_e_grad=True,
        filter_c_grad=True,
        impl="cce",
        vocab_parallel_options=None,
    ):
        assert bias is softcap is vocab_parallel_options is None and reduction == "mean" and not shift
        assert not return_lse and (filter_eps, accum_e_fp32, accum_c_fp32) == ("auto", False, False)
        self.asked.append(impl)
        return mean_loss(e, c, targets)

    def of_the_package(
        self,
        e,
        c,
        targets,
        ignore_index=-100,
        softcap=None,
        reduction="mean",
        shift=False,
        filter_eps="high",
        impl="cce",
    ):
        assert softcap is None and reduction == "mean" and not shift and impl == "cce"
        self.asked.append(filter_eps)
        return mean_loss(e, c, targets)


class Liger:
    def __init__(self):
        self.asked = []

    def fused_linear(
        self,
        input,
        weight,
        target,
        bias=None,
        ce_weight=None,
        ignore_index=-100,
        lse_square_scale=0.0,
        label_smoothing=0.0,
        reduction="mean",
        softcap=None,
        return_z_loss=False,
        accum_dtype=None,
        use_token_scaling=False,
        return_token_accuracy=False,
        return_predicted_tokens=False,
        chunk_mem_const=1,
    ):
        assert bias is ce_weight is softcap is None and lse_square_scale == label_smoothing == 0 and reduction == "mean"
        assert isinstance(chunk_mem_const, int)
        self.asked.append((accum_dtype, chunk_mem_const * input.nbytes))
        return mean_loss(input, weight, target)

    @staticmethod
    def apply(
        _input,
        weight,
        target,
        temperature=1.0,
        ignore_index=-100,
        m_tiles_per_cluster=1,
        return_entropy=False,
        selected_token_ids=None,
    ):
        """Of its Function with a temperature: a loss for each query."""
        torch.testing.assert_close(_input.detach().norm(dim=1), torch.ones(len(_input)))
        assert not return_entropy and isinstance(temperature, float)
        return functional.cross_entropy(_input @ weight.T / temperature, target, reduction="none")


class InfCL:
    def __init__(self):
        self.asked = []

    def cal_flash_loss(self, q, k, labels=None, scale=None, head_dim=256):
        """A loss for each query; its kernels read rows as "heads" of a power of two."""
        assert head_dim in (16, 32, 64, 128, 256)
        q, k = (x.view(len(x), -1, head_dim).float() for x in (scale * q, k))
        self.asked.append((q.shape[1] * head_dim, head_dim))
        return functional.cross_entropy(q.flatten(1) @ k.flatten(1).T, labels, reduction="none")


@pytest.fixture
def install(monkeypatch):
    def put(name, **members):
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)

    return put


@pytest.fixture
def on_a_gpu(monkeypatch):
    """What needs one takes the CPU for it."""
    for module in (cut_cross_entropy, liger, inf_cl):
        monkeypatch.setattr(module, "needs_a_gpu", lambda _: None)


@pytest.fixture
def cut(install):
    peer = CutCrossEntropy()
    install("cut_cross_entropy", linear_cross_entropy=peer.of_the_repository)
    return peer


@pytest.fixture
def liger_kernel(install):
    peer = Liger()
    for name in ("liger_kernel", "liger_kernel.transformers"):
        install(name)
    install("liger_kernel.transformers.functional", liger_fused_linear_cross_entropy=peer.fused_linear)
    install("liger_kernel.ops", LigerFusedLinearScaledCrossEntropyFunction=peer)
    return peer


@pytest.fixture
def inf(install):
    peer = InfCL()
    install("inf_cl", cal_flash_loss=peer.cal_flash_loss)
    return peer


def test_ours_come_first_and_what_compiles_longest_last():
    roles = [i.role for i in SUITE.implementations]
    assert roles == sorted(roles, key=("ours", "floor", "rival").index)
    assert list(ALL)[-1] == "eager_compiled" and len(ALL) == len(roles)
    assert [i.name for i in OF_PACKAGES] == list(ALL)[3 : 3 + len(OF_PACKAGES)]


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("shape", [MORE_CANDIDATES, AS_MANY], ids=["K=2", "K=0"])
class TestResults:
    @pytest.mark.parametrize(
        ("name", "asked"), [("cut_cross_entropy", "cce"), ("cut_cross_entropy_exact", "cce_exact")]
    )
    def test_cut_cross_entropy(self, cut, shape, name, asked):
        Case(shape, CPU).prepare(ALL[name])
        assert set(cut.asked) == {asked}

    @pytest.mark.parametrize(("name", "asked"), [("cut_cross_entropy", "high"), ("cut_cross_entropy_exact", None)])
    def test_cut_cross_entropy_of_the_package_index(self, cut, install, shape, name, asked):
        install("cut_cross_entropy", linear_cross_entropy=cut.of_the_package)
        Case(shape, CPU).prepare(ALL[name])
        assert set(cut.asked) == {asked}

    def test_liger(self, liger_kernel, shape):
        Case(shape, CPU).prepare(ALL["liger"])
        assert {accum_dtype for accum_dtype, _ in liger_kernel.asked} == {None}

    def test_liger_tuned(self, liger_kernel, shape):
        Case(shape, CPU).prepare(ALL["liger_tuned"])
        assert {accum_dtype for accum_dtype, _ in liger_kernel.asked} == {torch.float32}
        assert all(2**27 < scores <= 2**28 for _, scores in liger_kernel.asked)

    def test_liger_scaled(self, liger_kernel, shape):
        Case(shape, CPU).prepare(ALL["liger_scaled"])

    def test_inf_cl(self, inf, shape):
        Case(shape, CPU).prepare(ALL["inf_cl"])
        assert set(inf.asked) == {(dim, 32 if dim == 32 else 16) for dim in shape.dims}


@pytest.mark.usefixtures("on_a_gpu")
def test_inf_cl_takes_the_benchmarks_dims_in_heads_of_128_at_least(inf):
    for dims in (PAPER[3584], matryoshka(1024)):
        inf.asked.clear()
        work = ALL["inf_cl"].build([torch.randn(4, dims[-1], requires_grad=True) for _ in range(2)], dims)
        work.step()
        assert inf.asked == [(dim, 128 if dim % 256 else 256) for dim in dims]


@pytest.mark.usefixtures("inf", "on_a_gpu")
def test_inf_cl_names_the_dims_that_it_cannot_take():
    with pytest.raises(NotRun, match="multiples of 16"):
        Case(Shape(24, 2, 32, (10, 32), 4), CPU).prepare(ALL["inf_cl"])


@pytest.mark.parametrize("implementation", OF_PACKAGES, ids=operator.attrgetter("name"))
def test_what_is_not_installed_is_named(monkeypatch, implementation):
    for name in PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(NotRun, match=rf"^is not installed: .*({'|'.join(PACKAGES)})"), leaves_out(CPU, 0, ours=False):
        Case(AS_MANY, CPU).prepare(implementation)


@pytest.mark.usefixtures("cut", "liger_kernel", "inf")
@pytest.mark.parametrize("name", [i.name for i in OF_PACKAGES if i.name != "liger_scaled"])
def test_kernels_for_a_gpu_are_left_out_on_a_cpu(name):
    with pytest.raises(NotRun, match=r"^has only CUDA kernels$"):
        Case(AS_MANY, CPU).prepare(ALL[name])


def test_nothing_of_the_size_of_the_scores_is_expected():
    large = Shape(65536, 7, 3584, PAPER[3584])
    scores = 2 * large.pairs * large.candidates
    assert all(i.bytes_needed(large) < 2 * scores < eager.IMPLEMENTATIONS[0].bytes_needed(large) for i in OF_PACKAGES)
