"""InfoNCE over several processes with uneven batches equals one process with the whole batch."""

import multiprocessing
import socket
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from conan_fast import info_nce
from conan_fast.contrastive.batch import Wanted
from conan_fast.contrastive.distributed import ring
from conan_fast.contrastive.distributed.layout import Layout
from conan_fast.contrastive.torch_backend import passes as torch_passes

PROCESSES = 4
# Members of a group -> the rows that each of them holds.
GROUPS = {(0, 1): (3, 5), (1, 2, 3): (4, 0, 6), (0, 1, 2, 3): (1, 5, 2, 4)}
BOUNDS = {"gather": ring.GATHERED_BYTES, "ring": 0}
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-6}
WRONG = ("gradients of remote candidates dropped", "world size", "inverse world size")


def whole_batch(rows, dtype):
    """Queries, positives, negatives; ids with repetitions, of positives and of negatives."""
    generator = torch.Generator().manual_seed(rows)
    features = [torch.randn(*shape, generator=generator) for shape in ((rows, 16), (rows, 16), (rows, 2, 16))]
    ids = [torch.randint(0, 4, shape, generator=generator) for shape in ((rows,), (rows, 2))]
    return [x.to(dtype) for x in features], ids


def cases(features, ids):
    """(features, options): scopes, with and without negatives and ids."""
    yield features[:2], {}
    yield features[:2], {"positive_ids": ids[0]}
    yield features, {"positive_ids": ids[0]}
    for scope in ("shared", "private"):
        yield features, {"positive_ids": ids[0], "negative_ids": ids[1], "negative_scope": scope}


def part(rows, features, options):
    """What the process with these rows holds."""
    options = {name: x[rows] if isinstance(x, torch.Tensor) else x for name, x in options.items()}
    return [x[rows] for x in features], options


def loss_and_grads(features, options, group=None, requires_grad=True):
    """(result, gradients of features, gradient of the temperature)."""
    features = [x.clone().requires_grad_(requires_grad) for x in features]
    dtype = torch.promote_types(features[0].dtype, torch.float32)
    tau = torch.tensor(0.2, dtype=dtype, requires_grad=requires_grad)
    options = {"temperature": tau, "dims": [16, 3, 8], "dim_weights": [1.0, 0.5, 2.0], "group": group, **options}
    result = info_nce(*features, **options)
    if requires_grad:
        (result.loss * 1.5).backward()
    return result, [x.grad for x in features], tau.grad


def relative_error(mine, other):
    return ((mine - other).norm() / other.norm().clamp(min=1e-30)).item()


def assert_equal(mine, other):
    assert mine.dtype == other.dtype and mine.shape == other.shape
    assert relative_error(mine, other) <= TOLERANCES[other.dtype]


def check_case(features, options, rows, group):
    expected, expected_grads, expected_tau = loss_and_grads(features, options)
    result, grads, tau = loss_and_grads(*part(rows, features, options), group)
    assert_equal(result.loss.detach(), expected.loss.detach())
    assert_equal(result.loss_per_dim, expected.loss_per_dim)
    if expected.negative_scores is not None:
        assert_equal(result.negative_scores, expected.negative_scores[rows])
    for mine, other in zip(grads, expected_grads, strict=True):
        assert_equal(mine, other[rows])
    dist.all_reduce(tau, group=group)  # each process holds its own rows' part
    assert_equal(tau, expected_tau)


def wrong_grads(which, features, rows, group):
    """Gradients of (queries, positives) by what others do: the loss of the local rows against gathered candidates."""
    queries, positives = (x[rows].clone().requires_grad_() for x in features)
    if which == WRONG[0]:
        total, first = len(features[0]), rows.start
        candidates = torch.cat([features[1][:first], positives, features[1][rows.stop :]])
        scores = torch.nn.functional.cosine_similarity(queries[:, None], candidates[None], dim=-1) / 0.2
        own = torch.arange(first, first + len(queries))
        loss = torch.nn.functional.cross_entropy(scores, own, reduction="sum") / total
    else:
        world = dist.get_world_size(group)
        factor = {WRONG[1]: float(world), WRONG[2]: 1 / world}[which]
        loss = info_nce(queries, positives, temperature=0.2, group=group).loss * factor
    return torch.autograd.grad(loss, [queries, positives])


def check_wrong_ones_are_caught(features, rows, group):
    whole = [x.clone().requires_grad_() for x in features[:2]]
    expected = torch.autograd.grad(info_nce(*whole, temperature=0.2).loss, whole)
    for which in WRONG:
        grads = wrong_grads(which, features[:2], rows, group)
        mine, other = (torch.cat(list(x)) for x in (grads, [grad[rows] for grad in expected]))
        if not len(mine):
            continue
        with pytest.raises(AssertionError):
            assert_equal(mine, other)
        assert relative_error(mine, other) > 0.1
        cosine = torch.nn.functional.cosine_similarity(mine.flatten(), other.flatten(), dim=0)
        assert (cosine < 0.99) == (which == WRONG[0])  # only this one is wrong in direction too


def check_ring_without_gradients(features, rows, group):
    """One round only; but two on all processes as soon as one process wants gradients, of the parts that need them."""
    local, expected = [x[rows] for x in features], loss_and_grads(features, {})
    with mock.patch.object(torch_passes, "gradients", wraps=torch_passes.gradients) as second_round:
        quiet, *_ = loss_and_grads(local, {}, group, requires_grad=False)
        assert_equal(quiet.loss, expected[0].loss.detach())
        assert not second_round.called and not quiet.loss.requires_grad
        wants = dist.get_rank(group) != 0
        _, grads, _ = loss_and_grads(local, {}, group, requires_grad=wants)
        assert second_round.call_count == dist.get_world_size(group) - (not wants)
    if wants:
        assert_equal(grads[1], expected[1][1][rows])


def check_low_precision(features, rows, group):
    for dtype in (torch.bfloat16, torch.float16):
        low = [x.to(dtype) for x in features]
        expected, expected_grads, _ = loss_and_grads([x.double() for x in low], {})
        result, grads, _ = loss_and_grads([x[rows] for x in low], {}, group)
        assert abs(result.loss - expected.loss) <= 1e-5 * expected.loss
        for mine, other in zip(grads, expected_grads, strict=True):
            assert mine.dtype == dtype
            assert (mine.double() - other[rows]).norm() <= 1e-2 * other[rows].norm()


def check_what_differs(rank, features, group):
    """All processes raise, where the call of one of them differs, instead of one waiting for ever."""
    first = rank == 0
    queries, positives, negatives = (x[:4] for x in features)
    ids = torch.arange(4)
    for name, mine, other in (
        ("dims", {"dims": [16, 4]}, {"dims": [16, 8]}),
        ("dims", {"dims": [16]}, {"dims": [16, 8]}),
        ("dim_weights", {"dims": [16, 8]}, {"dims": [16, 8], "dim_weights": [1.0, 2.0]}),
        ("temperature", {"temperature": 0.05}, {"temperature": 0.06}),
        ("temperature", {"temperature": 0.05}, {"temperature": torch.tensor(0.05)}),
        ("negatives", {"negatives": negatives}, {}),
        ("negatives", {"negatives": negatives}, {"negatives": negatives, "negative_scope": "private"}),
        ("positive_ids", {"positive_ids": ids}, {}),
        (
            "negative_ids",
            {"negatives": negatives, "positive_ids": ids},
            {"negatives": negatives, "positive_ids": ids, "negative_ids": ids[:, None].expand(4, 2)},
        ),
    ):
        with pytest.raises(ValueError, match=f"^{name} must be the same in all processes of group: in process {rank} "):
            info_nce(queries, positives, **(mine if first else other), group=group)
    kind = torch.float64 if first else torch.float32
    with pytest.raises(ValueError, match="dtype must be the same in all processes"):
        info_nce(queries.to(kind), positives.to(kind), group=group)
    message = "dims must lie in 1..16" if first else r"refused its arguments in the processes \[0\] of group"
    with pytest.raises(ValueError, match=message):
        info_nce(queries, positives, dims=[99 if first else 8], group=group)


def check_only_wanted_gradients(features, rows, group):
    """Processes may want different gradients, and may have different numbers of hard negatives."""
    rank = dist.get_rank(group)
    whole = [x.clone().requires_grad_() for x in features]
    expected = torch.autograd.grad(info_nce(*whole, temperature=0.2).loss, whole)
    for turn in range(4):
        chosen = [(rank + turn + place) % 4 < 2 for place in range(3)]
        local = [x[rows].clone().requires_grad_(wanted) for x, wanted in zip(features, chosen, strict=True)]
        loss = info_nce(*local, temperature=0.2, group=group).loss
        if any(chosen):
            loss.backward()
        assert loss.requires_grad == any(chosen)
        for x, wanted, grad in zip(local, chosen, expected, strict=True):
            assert (x.grad is not None) == wanted
            if wanted:
                assert_equal(x.grad, grad[rows])


def check_different_numbers_of_negatives(features, sizes, rows, group):
    """The first process has one hard negative per query, the others two; all are candidates of all queries."""
    queries, positives, negatives = (x.clone().requires_grad_() for x in features)
    first = slice(0, sizes[0])
    kept = torch.cat([positives, negatives[first, :1].flatten(0, 1), negatives[sizes[0] :].flatten(0, 1)])
    scores = torch.nn.functional.cosine_similarity(queries[:, None], kept[None], dim=-1) / 0.2
    loss = torch.nn.functional.cross_entropy(scores, torch.arange(len(queries)))
    expected = torch.autograd.grad(loss, [queries, positives, negatives])
    count = 1 if rows == first else 2
    local = [features[0][rows], features[1][rows], features[2][rows][:, :count]]
    local = [x.clone().requires_grad_() for x in local]
    mine = info_nce(*local, temperature=0.2, group=group).loss
    assert_equal(mine.detach(), loss.detach())
    grads = torch.autograd.grad(mine, local)
    for x, other in zip(grads, (expected[0][rows], expected[1][rows], expected[2][rows][:, :count]), strict=True):
        assert_equal(x, other)


def check_group(rank, sizes, group):
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    for path, bound in BOUNDS.items():
        with (
            mock.patch.object(ring, "GATHERED_BYTES", bound),
            mock.patch.object(torch_passes, "statistics", wraps=torch_passes.statistics) as first_round,
        ):
            for dtype in TOLERANCES:
                features, ids = whole_batch(sum(sizes), dtype)
                for case in cases(features, ids):
                    check_case(*case, own, group)
            features, _ = whole_batch(sum(sizes), torch.float32)
            check_wrong_ones_are_caught(features, own, group)
            check_low_precision(features, own, group)
            assert first_round.called == (path == "ring")
            if path == "ring":
                check_ring_without_gradients(features, own, group)
            with pytest.raises(
                ValueError, match="D must be the same in all processes"
            ):  # on all, instead of one waiting for ever
                info_nce(features[0][:, : 4 + rank], features[1][:, : 4 + rank], group=group)
            with pytest.raises(ValueError, match="at least one row in some process"):
                info_nce(features[0][:0], features[1][:0], group=group)
            check_what_differs(rank, features, group)
            check_only_wanted_gradients(features, own, group)
            check_different_numbers_of_negatives(features, sizes, own, group)


def check_process(rank, port):
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, PROCESSES, is_master=rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES)
    try:
        groups = {members: dist.new_group(members) for members in GROUPS}
        for members, group in groups.items():
            if rank in members:
                check_group(members.index(rank), GROUPS[members], group)
        dist.barrier()  # the store lives in the first process
    finally:
        dist.destroy_process_group()


def test_two_three_and_four_processes_equal_one():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.set_forkserver_preload(["torch"])  # imported once, not by each process
    mp.start_processes(check_process, args=(port,), nprocs=PROCESSES, start_method="forkserver")


@pytest.fixture
def group_of_one():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize("world_size_matters", [True, False])
def test_one_process(group_of_one, monkeypatch, world_size_matters):
    """A group of one never needs the ring, but the ring can do it."""
    monkeypatch.setattr(ring, "GATHERED_BYTES", 0)
    if not world_size_matters:
        monkeypatch.setattr(ring, "needed", lambda *_: True)
    features, ids = whole_batch(7, torch.float64)
    for case in cases(features, ids):
        check_case(*case, slice(0, 7), group_of_one)


@pytest.mark.parametrize(
    ("sizes", "with_gradients", "dtype", "expected"),
    [
        ((100, 28), True, torch.float32, False),  # 128 x 64 x (4 + 4)
        ((100, 29), True, torch.float32, True),
        ((100, 100), False, torch.float32, False),  # no gradients, half of it
        ((100, 28), False, torch.float64, False),
        ((100, 28), True, torch.float64, True),
        ((100, 60), True, torch.bfloat16, False),  # 2 + 4 bytes
        ((150, 60), True, torch.bfloat16, True),
        ((10_000,), True, torch.float32, False),  # alone there is nothing to gather
    ],
)
def test_only_what_is_too_large_travels(monkeypatch, sizes, with_gradients, dtype, expected):
    monkeypatch.setattr(ring, "GATHERED_BYTES", 128 * 64 * 8)
    for rank in range(len(sizes)):
        layout = Layout(
            rank, [*sizes], [0] * len(sizes), [Wanted(queries=with_gradients)] + [Wanted()] * (len(sizes) - 1)
        )
        assert ring.needed(layout, torch.zeros(sizes[rank], 64, dtype=dtype)) == expected
