"""All Matryoshka dims together cost the matrix products of one, and only wanted gradients cost any.

The torch backend's products are counted, and compared with what torch's FLOP counter is told.
"""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from conan_fast import info_nce
from conan_fast.contrastive.batch import Batch, Wanted
from conan_fast.contrastive.torch_backend import passes as torch_passes
from tests.support.contrastive import random_features

ROWS, NEGATIVES, SIZE = 24, 7, 64
# FLOP of one product of all queries with all candidates.
PRODUCT = 2 * ROWS * (ROWS + ROWS * NEGATIVES) * SIZE
ONE, SEVEN = [SIZE], [8, 16, 24, 32, 40, 56, 64]


def inputs():
    return random_features(ROWS, NEGATIVES, SIZE, torch.float32)


def run_sweep(*arguments):
    losses, gradients = torch_passes.sweep(Batch(*arguments[:-1]), Wanted(*arguments[-1]))
    return losses, [x for x in gradients if x is not None]


# Our operators, and what is in them: a dispatch mode does not look inside by itself.
INSIDE = {
    torch.ops.conan_fast.info_nce_sweep.default: run_sweep,
    torch.ops.conan_fast.info_nce_negative_scores.default: torch_passes.negative_scores,
}
FIRST_FACTOR = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}  # its place among the arguments


class CountProducts(TorchDispatchMode):
    """FLOP of all matrix products; torch's own counter knows neither in-place ones nor our operators."""

    def __init__(self):
        super().__init__()
        self.flop = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in INSIDE:
            assert args[-1] == "torch"
            with self, torch.no_grad():
                return INSIDE[function](*args[:-1])
        with self:  # einsum and the like are made of others
            out = function.decompose(*args, **(kwargs or {}))
        if out is not NotImplemented:
            return out
        out = function(*args, **(kwargs or {}))
        place = FIRST_FACTOR.get(function.overloadpacket.__name__.removesuffix("_"))
        if place is not None:
            self.flop += 2 * math.prod(out.shape) * args[place].shape[-1]
        return out


def products(work):
    """Matrix products that `work` does, as a multiple of one full product."""
    with CountProducts() as counter:
        work()
    return counter.flop / PRODUCT


def of_each_query_and_its_own(features):
    """What negative_scores cost, N K D."""
    return products(lambda: torch_passes.negative_scores(features[0], features[2]))


@pytest.mark.parametrize("dims", [ONE, SEVEN])
def test_loss_and_gradient_are_three_products(dims):
    features = inputs()
    expected = 3 + of_each_query_and_its_own(features)
    assert products(lambda: info_nce(*features, dims=dims).loss.backward()) == pytest.approx(expected)


@pytest.mark.parametrize("dims", [ONE, SEVEN])
def test_the_loss_alone_is_one_product(dims):
    features = inputs()
    with torch.no_grad():
        expected = 1 + of_each_query_and_its_own(features)
        assert products(lambda: info_nce(*features, dims=dims)) == pytest.approx(expected)


SHARE = 1 / (1 + NEGATIVES)  # of the positives among the candidates


@pytest.mark.parametrize("scope", ["shared", "private"])
@pytest.mark.parametrize("dims", [ONE, SEVEN])
@pytest.mark.parametrize(
    ("wanted", "shared_products"),
    [
        ((True, False, False), 1),
        ((False, True, False), SHARE),
        ((False, False, True), 1 - SHARE),
        ((True, True, False), 1 + SHARE),
        ((False, True, True), 1),
        ((True, True, True), 2),
        ((False, False, False), 0),  # the temperature's alone
    ],
)
def test_only_the_wanted_gradients_cost_products(wanted, shared_products, dims, scope):
    features, tau = inputs(), torch.tensor(0.1, requires_grad=True)
    chosen = [x.detach().requires_grad_(is_wanted) for x, is_wanted in zip(features, wanted, strict=True)]
    options = {"temperature": tau, "dims": dims, "negative_scope": scope}

    def work():
        info_nce(*chosen, **options).loss.backward()

    gradients = shared_products
    if scope == "private":  # no matrix product makes the gradients of private negatives
        gradients = SHARE * (wanted[0] + wanted[1]) + (1 - SHARE) / ROWS * wanted[0]
    scores = 1 if scope == "shared" else SHARE + (1 - SHARE) / ROWS
    assert products(work) == pytest.approx(scores + gradients + of_each_query_and_its_own(features))
    assert [x.grad is not None for x in chosen] == list(wanted)


@pytest.mark.parametrize("wanted", [(False, False), (True, False), (False, True), (True, True)])
def test_torchs_flop_counter(wanted):
    """As much as eager cross-entropy over the same candidates: this is what a training step's FLOP are summed from."""
    queries, positives = (x.detach().requires_grad_(y) for x, y in zip(inputs(), wanted, strict=False))

    def flop(loss):
        with FlopCounterMode(display=False) as counter:
            value = loss()
            if any(wanted):
                value.backward()
        return counter.get_total_flops()

    eager = flop(lambda: torch.nn.functional.cross_entropy(queries @ positives.T, torch.arange(ROWS)))
    assert eager == (1 + sum(wanted)) * 2 * ROWS * ROWS * SIZE
    assert flop(lambda: info_nce(queries, positives).loss) == eager
    assert flop(lambda: info_nce(queries, positives, dims=SEVEN).loss) == eager


@pytest.mark.parametrize("scope", ["shared", "private"])
def test_torchs_flop_counter_with_hard_negatives(scope):
    features = inputs()
    own = 2 * ROWS * NEGATIVES * SIZE  # each query with its own hard negatives
    with FlopCounterMode(display=False) as counter:
        info_nce(*features, negative_scope=scope).loss.backward()
    expected = 3 * PRODUCT if scope == "shared" else 3 * (2 * ROWS * ROWS * SIZE + own)
    assert counter.get_total_flops() == expected + own  # negative_scores


@pytest.mark.parametrize("dims", [ONE, SEVEN])
def test_statistics_and_gradients_are_four_products(dims):
    queries, positives, negatives = (x.detach() for x in inputs())
    features = (queries, positives, negatives.flatten(0, 1), None, torch.tensor(0.1))
    batch = Batch(*features, None, None, None, None, dims, [1.0] * len(dims), 0, ROWS)

    def work():
        logsumexp, _ = torch_passes.statistics(batch)
        torch_passes.gradients(batch, logsumexp, Wanted(True, True, True, False, True))

    assert products(work) == pytest.approx(4)


def test_the_usual_way_would_be_counted():
    """Once per dim costs the sum of the dims over the largest: the count sees it."""
    features = inputs()
    separate = products(lambda: sum(info_nce(*(x[..., :dim] for x in features[:2])).loss for dim in SEVEN).backward())
    assert separate == pytest.approx(3 * sum(SEVEN) / SIZE / (1 + NEGATIVES))
