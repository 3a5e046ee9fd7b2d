"""A backend's `statistics` and `gradients` of parts of the candidates sum up to the whole, in float64."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conan_fast import reference
from conan_fast.contrastive.batch import Batch, Wanted
from conan_fast.contrastive.torch_backend import passes as torch_passes
from tests.support.comparison import assert_same
from tests.support.contrastive import everything, random_batches, random_features, small_chunks


def by_parts(features, temperature, owners, dims, weights, ids, scope):
    """(losses [dims], gradients of features, gradient of temperature) of the summed loss, as processes would do it.

    owners: for each part of the batch its rows; each part's queries meet one part's candidates after the other.
    """
    queries, positives, negatives = features if len(features) == 3 else (*features, None)
    positive_ids, negative_ids = ids
    private = scope == "private"
    losses, grads = torch.zeros(len(dims), dtype=torch.float64), [torch.zeros_like(x) for x in features]
    grad_temperature = torch.zeros_like(temperature)

    def batch(mine, theirs):
        def rows(x, of):
            return None if x is None else x[of]

        shared = None if private or negatives is None else negatives[theirs].flatten(0, 1)
        shared_ids = None if shared is None or negative_ids is None else negative_ids[theirs].flatten()
        alone = (negatives, negative_ids) if private and mine == theirs else (None, None)
        return Batch(
            queries[mine], positives[theirs], shared, rows(alone[0], mine), temperature, rows(positive_ids, mine),
            rows(positive_ids, theirs), shared_ids, rows(alone[1], mine), dims, weights,
            0 if mine == theirs else None, len(queries),
        )  # fmt: skip

    for mine in owners:
        logsumexp = torch.full((len(dims), len(queries[mine])), -torch.inf, dtype=torch.float64)
        own = torch.zeros_like(logsumexp)
        for theirs in owners:
            parts = torch_passes.statistics(batch(mine, theirs))
            logsumexp, own = torch.logaddexp(logsumexp, parts[0]), own + parts[1]
        losses += (logsumexp - own).sum(1) / len(queries)
        for theirs in owners:
            part = batch(mine, theirs)
            wanted = Wanted(*[x is not None for x in part.features])
            of_queries, of_positives, of_shared, of_private, of_temperature = torch_passes.gradients(
                part, logsumexp, wanted
            )
            grads[0][mine] += of_queries
            grads[1][theirs] += of_positives
            if of_shared is not None:
                grads[2][theirs] += of_shared.view_as(grads[2][theirs])
            if of_private is not None:
                grads[2][mine] += of_private
            grad_temperature += of_temperature
    return losses, grads, grad_temperature


@settings(deadline=None, max_examples=40)
@given(
    batch=random_batches(
        st.integers(1, 14), lambda _: st.one_of(st.none(), st.integers(0, 4)), sizes=st.integers(1, 12)
    ),
    cuts=st.lists(st.integers(0, 14), max_size=3), temperature=st.sampled_from([0.01, 0.05, 1.0]),
    workspace=st.sampled_from([1, 2000, 256 << 20]), columns=st.sampled_from([1, 3, 2048]),
)  # fmt: skip
def test_parts_sum_up_to_the_reference(batch, cuts, temperature, workspace, columns):
    features, options = batch.inputs()
    ends = [0, *sorted(min(cut, batch.rows) for cut in cuts), batch.rows]
    owners = [slice(*pair) for pair in dict.fromkeys(itertools.pairwise(ends))]  # one without rows at most once
    dims = options.get("dims", [batch.size])
    rising = sorted(range(len(dims)), key=lambda place: dims[place])
    weights = options.get("dim_weights", [1.0] * len(dims))
    ids = options.get("positive_ids"), options.get("negative_ids")
    with small_chunks(workspace, columns), torch.no_grad():
        losses, grads, grad_temperature = by_parts(
            features, torch.tensor(temperature, dtype=torch.float64), owners, [dims[place] for place in rising],
            [1.7 * weights[place] for place in rising], ids, options["negative_scope"],
        )  # fmt: skip
    expected = everything(reference.info_nce, features, temperature, **options)
    names = ["queries", "positives", "negatives"][: len(features)]
    assert_same(losses, expected["losses"][rising])
    assert_same(grads, [expected[name] for name in names])
    assert_same(grad_temperature * temperature, expected["tau"])


def test_statistics_written_out():
    """Cosines [[1, 0], [0, -1]] at temperature 0.5, against both candidates, one, and none."""
    queries = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    positives = torch.tensor([[3.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    tau = torch.tensor(0.5, dtype=torch.float64)
    batch = Batch(queries, positives, None, None, tau, None, None, None, None, [2], [1.0], 0, 2)
    both = torch_passes.statistics(batch)
    sums = torch.tensor([[math.exp(2) + 1, 1 + math.exp(-2)]], dtype=torch.float64)
    assert_same(both, [sums.log(), torch.tensor([[2.0, -2.0]], dtype=torch.float64)])
    alone = torch_passes.statistics(batch._replace(positives=positives[1:], first_positive=None))
    assert_same(alone, [torch.tensor([[0.0, -2.0]], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)])
    nothing = torch_passes.statistics(batch._replace(positives=positives[:0], first_positive=None))
    assert nothing[0].isneginf().all() and not nothing[1].any()
    no_queries = batch._replace(queries=queries[:0], first_positive=None)
    assert [list(x.shape) for x in torch_passes.statistics(no_queries)] == [[1, 0], [1, 0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_statistics_and_gradients_come_in_float32(dtype):
    features = [x.detach().to(dtype) for x in random_features(5, 2, 8)]
    tau = torch.tensor(0.1)
    batch = Batch(*features[:2], None, features[2], tau, None, None, None, None, [4, 8], [1.0, 1.0], 0, 5)
    logsumexp, own = torch_passes.statistics(batch)
    wanted = Wanted(True, True, False, True, True)
    grads = torch_passes.gradients(batch, logsumexp, wanted)
    assert grads.shared is None
    grads = [grads.queries, grads.positives, grads.private, grads.temperature]
    assert {x.dtype for x in (logsumexp, own, *grads)} == {torch.float32}
    _, whole = torch_passes.sweep(batch, wanted)
    for mine, other in zip(grads, [x for x in whole if x is not None], strict=True):
        torch.testing.assert_close(
            mine.to(other.dtype), other, rtol=1e-5 if dtype == torch.float32 else 2e-2, atol=1e-5
        )
