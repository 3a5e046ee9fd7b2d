"""The peers of the contrastive suite that need a GPU or a package: how they call what they measure.

Each package is replaced by its signature around plain torch: an argument of another name, layout or scale shows.
"""

import operator
import sys

import pytest
import torch
from torch.nn import functional

from benchmarks.contrastive.cases import PAPER, Case, Workload, matryoshka
from benchmarks.contrastive.peers import IMPLEMENTATIONS, cross_entropies, eager
from benchmarks.suite import NotRun, guarded
from tests.benchmarks.fakes import declared

CPU = torch.device("cpu")
ALL = {i.name: i for i in IMPLEMENTATIONS}
PACKAGES = ("cut_cross_entropy", "liger_kernel", "inf_cl")
OF_PACKAGES = cross_entropies.IMPLEMENTATIONS[:-1]  # the last is torch's
MORE_CANDIDATES, AS_MANY = Case(24, 2, 48, (16, 32, 48), 4), Case(24, 0, 48, (48,), 4)


def mean_loss(queries, candidates, labels):
    assert queries.shape[1] == candidates.shape[1] and queries.dtype == candidates.dtype
    torch.testing.assert_close(candidates.detach().norm(dim=1), torch.ones(len(candidates)))
    assert labels.dtype == torch.int64 and labels.shape == queries.shape[:1]
    return functional.cross_entropy(queries @ candidates.T, labels)


class Fake:
    """asked: how the peer was asked to compute."""

    def __init__(self):
        self.asked = []


class CutCrossEntropy(Fake):
    @declared(
        "self, e, c, targets, bias=None, ignore_index=-100, softcap=None, reduction='mean', shift=0, return_lse=False, "
        "filter_eps='auto', accum_e_fp32=False, accum_c_fp32=False, filter_e_grad=True, filter_c_grad=True, "
        "impl='cce', vocab_parallel_options=None"
    )
    def of_the_repository(given):
        assert given.bias is given.softcap is given.vocab_parallel_options is None and given.reduction == "mean"
        assert not given.shift and not given.return_lse
        assert (given.filter_eps, given.accum_e_fp32, given.accum_c_fp32) == ("auto", False, False)
        given.self.asked.append(given.impl)
        return mean_loss(given.e, given.c, given.targets)

    @declared(
        "self, e, c, targets, ignore_index=-100, softcap=None, reduction='mean', shift=False, filter_eps='high', "
        "impl='cce'"
    )
    def of_the_package(given):
        assert given.softcap is None and given.reduction == "mean" and not given.shift and given.impl == "cce"
        given.self.asked.append(given.filter_eps)
        return mean_loss(given.e, given.c, given.targets)


class Liger(Fake):
    @declared(
        "self, input, weight, target, bias=None, ce_weight=None, ignore_index=-100, lse_square_scale=0.0, "
        "label_smoothing=0.0, reduction='mean', softcap=None, return_z_loss=False, accum_dtype=None, "
        "use_token_scaling=False, return_token_accuracy=False, return_predicted_tokens=False, chunk_mem_const=1"
    )
    def fused_linear(given):
        assert given.bias is given.ce_weight is given.softcap is None and given.reduction == "mean"
        assert given.lse_square_scale == given.label_smoothing == 0 and isinstance(given.chunk_mem_const, int)
        given.self.asked.append((given.accum_dtype, given.chunk_mem_const * given.input.nbytes))
        return mean_loss(given.input, given.weight, given.target)

    @staticmethod
    @declared(
        "_input, weight, target, temperature=1.0, ignore_index=-100, m_tiles_per_cluster=1, return_entropy=False, "
        "selected_token_ids=None"
    )
    def apply(given):
        """Of its Function with a temperature: a loss for each query."""
        torch.testing.assert_close(given._input.detach().norm(dim=1), torch.ones(len(given._input)))
        assert not given.return_entropy and isinstance(given.temperature, float)
        scores = given._input @ given.weight.T / given.temperature
        return functional.cross_entropy(scores, given.target, reduction="none")


class InfCL(Fake):
    def cal_flash_loss(self, q, k, labels=None, scale=None, head_dim=256):
        """A loss for each query; its kernels read rows as "heads" of a power of two."""
        assert head_dim in (16, 32, 64, 128, 256)
        q, k = (x.view(len(x), -1, head_dim).float() for x in (scale * q, k))
        self.asked.append((q.shape[1] * head_dim, head_dim))
        return functional.cross_entropy(q.flatten(1) @ k.flatten(1).T, labels, reduction="none")


@pytest.fixture
def on_a_gpu(monkeypatch):
    """What needs one takes the CPU for it."""
    monkeypatch.setattr(cross_entropies, "needs_a_gpu", lambda _: None)


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
    roles = [i.role for i in IMPLEMENTATIONS]
    assert roles == sorted(roles, key=("ours", "gemms", "rival").index)
    assert list(ALL)[-1] == "eager_compiled" and len(ALL) == len(roles)
    first = roles.index("rival")
    assert [i.name for i in OF_PACKAGES] == list(ALL)[first : first + len(OF_PACKAGES)]


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("case", [MORE_CANDIDATES, AS_MANY], ids=["K=2", "K=0"])
class TestResults:
    @pytest.mark.parametrize(
        ("name", "asked"), [("cut_cross_entropy", "cce"), ("cut_cross_entropy_exact", "cce_exact")]
    )
    def test_cut_cross_entropy(self, cut, case, name, asked):
        Workload(case, CPU).check(ALL[name])
        assert set(cut.asked) == {asked}

    @pytest.mark.parametrize(("name", "asked"), [("cut_cross_entropy", "high"), ("cut_cross_entropy_exact", None)])
    def test_cut_cross_entropy_of_the_package_index(self, cut, install, case, name, asked):
        install("cut_cross_entropy", linear_cross_entropy=cut.of_the_package)
        Workload(case, CPU).check(ALL[name])
        assert set(cut.asked) == {asked}

    def test_liger(self, liger_kernel, case):
        Workload(case, CPU).check(ALL["liger"])
        assert {accum_dtype for accum_dtype, _ in liger_kernel.asked} == {None}

    def test_liger_tuned(self, liger_kernel, case):
        Workload(case, CPU).check(ALL["liger_tuned"])
        assert {accum_dtype for accum_dtype, _ in liger_kernel.asked} == {torch.float32}
        assert all(2**27 < scores <= 2**28 for _, scores in liger_kernel.asked)

    def test_liger_scaled(self, liger_kernel, case):
        Workload(case, CPU).check(ALL["liger_scaled"])

    def test_inf_cl(self, inf, case):
        Workload(case, CPU).check(ALL["inf_cl"])
        assert set(inf.asked) == {(dim, 32 if dim == 32 else 16) for dim in case.dims}


@pytest.mark.usefixtures("on_a_gpu")
def test_inf_cl_splits_the_benchmarks_dims_into_heads_of_128_at_least(inf):
    for dims in (PAPER[3584], matryoshka(1024)):
        inf.asked.clear()
        step = ALL["inf_cl"].build([torch.randn(4, dims[-1], requires_grad=True) for _ in range(2)], dims)
        step.run()
        assert inf.asked == [(dim, 128 if dim % 256 else 256) for dim in dims]


@pytest.mark.usefixtures("inf", "on_a_gpu")
def test_inf_cl_names_the_dims_that_it_does_not_support():
    with pytest.raises(NotRun, match="multiples of 16"):
        Workload(Case(24, 2, 32, (10, 32), 4), CPU).check(ALL["inf_cl"])


@pytest.mark.parametrize("implementation", OF_PACKAGES, ids=operator.attrgetter("name"))
def test_what_is_not_installed_is_named(monkeypatch, implementation):
    for name in PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(NotRun, match=rf"^is not installed: .*({'|'.join(PACKAGES)})"), guarded(CPU, implementation):
        Workload(AS_MANY, CPU).check(implementation)


@pytest.mark.usefixtures("cut", "liger_kernel", "inf")
@pytest.mark.parametrize("name", [i.name for i in OF_PACKAGES if i.name != "liger_scaled"])
def test_kernels_for_a_gpu_are_skipped_on_a_cpu(name):
    with pytest.raises(NotRun, match=r"^has only CUDA kernels$"):
        Workload(AS_MANY, CPU).check(ALL[name])


def test_nothing_of_the_size_of_the_scores_is_expected():
    large = Case(65536, 7, 3584, PAPER[3584])
    scores = 2 * large.pairs * large.candidates
    assert all(i.bytes_needed(large) < 2 * scores < eager.IMPLEMENTATIONS[0].bytes_needed(large) for i in OF_PACKAGES)
