"""InfoNCE and CoSENT under torch.compile: how many graphs there are, counted by a backend, and that results agree."""

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.backends.debugging import aot_eager

from conan_fast import cosent, info_nce
from tests.support.comparison import assert_same
from tests.support.contrastive import random_features, random_ids

HUNDRED = [0.02 + 0.01 * step for step in range(100)]
TENSORS = [torch.tensor(temperature, dtype=torch.float64) for temperature in HUNDRED]


def compiled(function: Callable, **options):
    """(function compiled, the graphs that have run)."""
    torch._dynamo.reset()
    graphs = set()

    def counting(graph, inputs):
        run = aot_eager(graph, inputs)

        def counted(*arguments):
            graphs.add(graph)
            return run(*arguments)

        return counted

    return torch.compile(function, backend=counting, **options), graphs


def check(function: Callable, calls, most_graphs=1, **options):
    """Values and gradients of a compiled loss equal the eager ones, with so many graphs."""
    traced, graphs = compiled(function, **options)
    for arguments in calls:
        inputs = [x for x in arguments if isinstance(x, torch.Tensor) and x.requires_grad]
        loss, expected = traced(*arguments), function(*arguments)
        assert_same(loss, expected, tolerance=1e-12)
        grads = torch.autograd.grad(loss, inputs)
        assert_same(grads, torch.autograd.grad(expected, inputs), tolerance=1e-12)
    assert len(graphs) <= most_graphs, f"{len(graphs)} graphs"


def plain(queries, positives, temperature):
    return info_nce(queries, positives, temperature=temperature).loss


def ranking(a, b, temperature):
    return cosent(a, b, torch.arange(len(a)) // 2, temperature=temperature)


@pytest.mark.parametrize("loss", [plain, ranking])
@pytest.mark.parametrize("temperatures", [HUNDRED, TENSORS], ids=["floats", "tensors"])
def test_a_hundred_temperatures_are_one_graph(loss, temperatures):
    pairs = random_features(5, None, 8)
    check(loss, [(*pairs, temperature) for temperature in temperatures], fullgraph=True, dynamic=True)


@pytest.mark.parametrize("loss", [plain, ranking])
def test_without_dynamic_two_graphs_are_enough(loss):
    """The first value is a constant of its graph; torch makes the second one an input."""
    pairs = random_features(5, None, 8)
    check(loss, [(*pairs, temperature) for temperature in HUNDRED[:12]], most_graphs=2, fullgraph=True)


def test_a_learned_temperature():
    pairs = random_features(5, None, 8)
    calls = [(*pairs, temperature.clone().requires_grad_()) for temperature in TENSORS[:12]]
    check(plain, calls, fullgraph=True, dynamic=True)


@pytest.mark.parametrize("scope", ["shared", "private"])
@pytest.mark.parametrize("dynamic", [True, None])
def test_ids_negatives_and_dims(scope, dynamic):
    """positive_ids are those of the queries, too: torch.compile once failed with "duplicate tensor input"."""
    options = {"negative_scope": scope, "dims": [16, 4, 8], "dim_weights": [1.0, 0.5, 2.0]}

    def loss(queries, positives, negatives, positive_ids, negative_ids, temperature):
        result = info_nce(
            queries, positives, negatives, positive_ids=positive_ids, negative_ids=negative_ids,
            temperature=temperature, **options,
        )  # fmt: skip
        return result.loss + result.negative_scores.sum() + result.loss_per_dim.sum()

    calls = []
    for rows, temperature in zip(range(3, 15), HUNDRED, strict=False):
        calls.append((*random_features(rows, 2, 16), *random_ids(rows, 2).values(), temperature))
    check(loss, calls, most_graphs=2 if dynamic is None else 1, fullgraph=True, dynamic=dynamic)


def test_one_tensor_as_queries_and_positives():
    def loss(both):
        return info_nce(both, both).loss + cosent(both, both, torch.arange(5))

    check(loss, [random_features(5, None, 8)[:1]], fullgraph=True)


def test_cosent_of_many_sizes():
    calls = [(*random_features(rows, None, 8), 0.05) for rows in range(3, 15)]
    check(ranking, calls, fullgraph=True, dynamic=True)


def test_low_precision_under_autocast():
    queries, positives = random_features(5, None, 8, torch.float32)
    queries = queries.detach().bfloat16().requires_grad_()

    def loss(queries, positives):
        with torch.autocast("cpu", torch.bfloat16):
            return info_nce(queries, positives).loss + cosent(queries, positives, torch.arange(5))

    traced, graphs = compiled(loss, fullgraph=True)
    mine, expected = (torch.autograd.grad(f(queries, positives), [queries, positives]) for f in (traced, loss))
    assert_same(mine, expected, tolerance=1e-6)
    assert [x.dtype for x in mine] == [torch.bfloat16, torch.float32] and len(graphs) == 1


@pytest.mark.parametrize("temperature", [-0.1, float("inf")])
def test_a_temperature_that_is_none_is_refused(temperature):
    queries, positives = random_features(5, None, 8)
    traced, _ = compiled(plain, fullgraph=True, dynamic=True)
    with pytest.raises(Exception, match="temperature must be positive"):
        traced(queries, positives, temperature)
    with pytest.raises(ValueError, match="temperature must be positive"):  # where the operator runs
        traced(queries, positives, torch.tensor(temperature))
    traced, _ = compiled(ranking, fullgraph=True, dynamic=True)
    assert traced(queries, positives, torch.tensor(temperature)).isnan()


def test_a_group_breaks_the_graph_once():
    """Before and after info_nce(group=...) there is a graph each."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        group = dist.group.WORLD

        def loss(queries, positives, temperature):
            return info_nce(queries.sin(), positives.sin(), temperature=temperature, group=group).loss.exp()

        pairs = random_features(5, None, 8)
        check(loss, [(*pairs, temperature) for temperature in TENSORS[:3]], most_graphs=2)
        broken, _ = compiled(loss, fullgraph=True)
        with pytest.raises(Exception, match="_over_group"):
            broken(*pairs, 0.1)
    finally:
        dist.destroy_process_group()
