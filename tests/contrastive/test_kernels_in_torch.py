"""The contrastive kernels as torch operators, and the arguments that they and their bindings reject."""

import pytest
import torch
from torch.library import opcheck
from torch.utils.dlpack import to_dlpack

from conan_fast import _native, cosent, info_nce
from conan_fast.contrastive.backend import BACKENDS
from conan_fast.contrastive.batch import Batch, Wanted
from tests.support.contrastive import everything, random_features, random_ids, way

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def sweep_arguments(features, ids, dims, backend, scope="shared"):
    queries, positives, negatives = (x.detach() for x in features)
    shared = negatives.flatten(0, 1) if scope == "shared" else None
    private = negatives if scope == "private" else None
    own, others = ids["positive_ids"], ids["negative_ids"]
    temperature = torch.tensor(0.1, device=queries.device)
    all_ids = (own, own, others.flatten() if shared is not None else None, others if private is not None else None)
    wanted = [True, True, shared is not None, private is not None, True]
    rest = (dims, [1.0] * len(dims), 0, len(queries), wanted, backend)
    return (queries, positives, shared, private, temperature, *all_ids, *rest)


@pytest.mark.parametrize("scope", ["shared", "private"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_operator_passes_torchs_own_checks(kernel_backend, dtype, scope):
    backend, device = kernel_backend
    for size in (40, 41):  # 41 is no multiple of anything
        features = random_features(9, 2, size, dtype, device)
        ids = random_ids(9, 2, device)
        opcheck(torch.ops.conan_fast.info_nce_sweep.default, sweep_arguments(features, ids, [16, 32], backend, scope))
        rows = (features[0].detach(), features[2].detach(), backend)
        opcheck(torch.ops.conan_fast.info_nce_negative_scores.default, rows)


def test_compile_without_graph_break(kernel_backend):
    backend, device = kernel_backend
    features = random_features(9, 2, 32, torch.bfloat16, device)

    def loss(queries, positives, negatives, temperature, dims):
        return info_nce(queries, positives, negatives, temperature=temperature, dims=dims, backend=backend)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    options = {"temperature": 0.05, "dims": [16, 32]}
    ours, plain = everything(compiled, features, **options), everything(loss, features, **options)
    for name, x in plain.items():
        torch.testing.assert_close(ours[name], x, rtol=0, atol=0, msg=name)


def test_inputs_are_left_as_they_are(kernel_backend):
    backend, device = kernel_backend
    features, ids = random_features(140, 2, 32, torch.float16, device), random_ids(140, 2, device)
    before = [x.detach().clone() for x in [*features, *ids.values()]]
    everything(info_nce, features, 0.05, backend=backend, **ids)
    for x, was in zip([*features, *ids.values()], before, strict=True):
        torch.testing.assert_close(x.detach(), was, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_and_gradients_of_parts_of_the_candidates_add_up(kernel_backend, dtype):
    """What processes in a ring do: each part of the candidates in turn, one of them without any."""
    backend, device = kernel_backend
    functions, dims, factors = BACKENDS[backend], [16, 48], [1.0, 0.5]
    features, ids = random_features(140, 1, 48, dtype, device), random_ids(140, 1, device)
    queries, positives, negatives = (x.detach() for x in features)
    own, others, shared = ids["positive_ids"], ids["negative_ids"].flatten(), negatives.flatten(0, 1)
    tau = torch.tensor(0.05, device=device)
    # (rows of the candidates, where query 0's own positive is): each query's is in the first part or in the last.
    parts = [(slice(0, 90), 0), (slice(90, 90), None), (slice(90, 140), -90)]
    batches = [
        Batch(
            queries, positives[rows], shared[rows], None, tau, own, own[rows], others[rows], None, dims, factors,
            first, 140,
        )
        for rows, first in parts
    ]  # fmt: skip
    statistics = [functions.statistics(batch) for batch in batches]
    logsumexp = torch.stack([part[0] for part in statistics]).logsumexp(0)
    scores = statistics[0][1] + statistics[2][1]  # each own positive is in one of them, the other says 0
    losses = (logsumexp - scores).mean(1)
    grads = [functions.gradients(batch, logsumexp, Wanted(True, True, True, False, True)) for batch in batches]
    with torch.no_grad():
        queries_grad = grads[0][0] + grads[1][0] + grads[2][0]
        positives_grad = torch.cat([part[1] for part in grads])
        shared_grad = torch.cat([part[2] for part in grads])
        tau_grad = grads[0][4] + grads[1][4] + grads[2][4]
    assert all(x.dtype == torch.float32 for x in (queries_grad, positives_grad, shared_grad))
    whole = everything(info_nce, features, 0.05, dims=dims, dim_weights=factors, backend=backend, **ids)
    torch.testing.assert_close(losses.double(), whole["losses"], rtol=1e-5, atol=1e-5)
    tolerance = {torch.bfloat16: 6e-3, torch.float16: 1e-3, torch.float32: 1e-5}[dtype]
    found = {"queries": queries_grad, "positives": positives_grad, "negatives": shared_grad, "tau": tau_grad * tau}
    for name, mine in found.items():
        truth = whole[name].view_as(mine) / 1.7
        assert (mine - truth).norm() <= tolerance * truth.norm(), name


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"dtype": torch.float64}, TypeError, "queries must be bfloat16, float16 or float32 for the kernels"),
        ({"dims": [8, 32]}, ValueError, r"dims must be multiples of 16, at most 32 of them, .* got \[8, 32\]"),
        ({"size": 640, "dims": [16 * i for i in range(1, 34)]}, ValueError, "dims must be multiples of 16, at most 32"),
        ({"size": 8208}, ValueError, "queries must have at most 8192 columns for the kernels, got 8208"),
        ({"device": "meta"}, ValueError, "queries must be on a cpu device for backend='emulated', got meta"),
        ({"temperature": torch.tensor(-1.0)}, ValueError, "temperature must be positive"),
    ],
)
def test_refuses(emulated, changes, error, message):
    device = changes.get("device", "cpu")
    features = random_features(3, None, changes.get("size", 32), changes.get("dtype", torch.bfloat16), device)
    with pytest.raises(error, match=message):
        info_nce(*features, dims=changes.get("dims"), temperature=changes.get("temperature", 0.05), backend="emulated")


def score_arguments(**changes):
    """Arguments of the compiled contrastive_scores for 9 queries and 5 candidates of 32 numbers, dims 16 and 32."""
    arguments = {
        "queries": torch.zeros(9, 32, dtype=torch.bfloat16), "candidates": torch.zeros(5, 32, dtype=torch.bfloat16),
        "query_ids": None, "candidate_ids": None, "query_norms": torch.zeros(2, 9),
        "candidate_norms": torch.zeros(2, 128), "temperature": torch.tensor(0.1), "dims": [16, 32], "own_column": 0,
        "own": torch.zeros(2, 9), "logsumexp": None, "weights": torch.zeros(2, 9, 128, dtype=torch.bfloat16),
        "partials": torch.zeros(3, 2, 9, 2), "first_segment": 0, "stream": 0,
    } | changes  # fmt: skip
    return {name: to_dlpack(x) if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"queries": torch.zeros(9, 32).double()}, TypeError, "queries must be float32"),
        ({"queries": torch.zeros(32, 9).T.bfloat16()}, ValueError, "queries must have rows aligned to 16 bytes"),
        ({"candidates": torch.zeros(5, 32)}, TypeError, "candidates must be bfloat16, got float32"),
        ({"candidates": torch.zeros(5, 24).bfloat16()}, ValueError, "candidates must have at least 32 columns"),
        ({"query_ids": torch.zeros(9)}, TypeError, "query_ids must be int64"),
        ({"candidate_ids": torch.zeros(9).long()}, ValueError, r"candidate_ids must have shape \[5\]"),
        ({"query_norms": torch.zeros(2, 8)}, ValueError, r"query_norms must be \[2, at least 9\]"),
        ({"candidate_norms": torch.zeros(2, 5)}, ValueError, r"candidate_norms must be \[2, at least 128\]"),
        ({"candidate_norms": torch.zeros(2, 130)[:, 1:]}, ValueError, "candidate_norms must have rows aligned"),
        ({"candidate_norms": None}, TypeError, "candidate_norms must be a DLPack capsule .* got NoneType"),
        ({"temperature": torch.zeros(1)}, ValueError, r"temperature must have shape \[\]"),
        ({"dims": []}, ValueError, "dims must have 1 to 32 entries, got 0"),
        ({"dims": [16, 16]}, ValueError, "dims must be rising multiples of 16"),
        ({"dims": [24, 32]}, ValueError, "dims must be rising multiples of 16"),
        ({"own_column": -(2**30) - 1}, ValueError, r"own_column must be within 2\^30 of 0"),
        ({"own": None}, TypeError, "own must be a DLPack capsule .* got NoneType"),
        ({"temperature": None}, TypeError, "temperature must be a DLPack capsule .* got NoneType"),
        ({"logsumexp": torch.zeros(2, 8)}, ValueError, r"logsumexp must have shape \[2, 9\]"),
        ({"weights": torch.zeros(2, 9, 64).bfloat16()}, ValueError, r"weights must have shape \[2, 9, 128\]"),
        ({"weights": torch.zeros(2, 128, 9).mT.bfloat16()}, ValueError, "weights must be contiguous"),
        ({"partials": torch.zeros(3, 2, 9, 1)}, ValueError, r"partials must have at least first_segment \+ 2 segments"),
        ({"first_segment": 1}, ValueError, "partials must have at least .* got 2 and first_segment 1"),
    ],
)
def test_bindings_check_every_argument(emulated, changes, error, message):
    with pytest.raises(error, match=message):
        emulated.contrastive_scores(**score_arguments(**changes))


def test_bindings_take_what_is_right(emulated):
    emulated.contrastive_scores(**score_arguments())


ROWS, COLUMNS, DIMS = 9, 5, [16, 32]
FEATURES = torch.zeros(ROWS, 32, dtype=torch.bfloat16)
PAIRS = torch.zeros(2, ROWS, 3)
VALID = {
    "contrastive_norms": {"vectors": FEATURES, "dims": DIMS, "out": torch.zeros(2, 128)},
    "contrastive_combine": {
        "partials": torch.zeros(3, 2, ROWS, 4), "extra": PAIRS, "known": False, "dims": DIMS,
        "logsumexp": torch.zeros(2, ROWS), "mean": torch.zeros(2, ROWS),
    },
    "contrastive_weights": {
        "weights": torch.zeros(2, ROWS, 128), "columns": COLUMNS, "query_norms": torch.zeros(2, ROWS),
        "candidate_norms": torch.zeros(2, 128), "partials": torch.zeros(3, 2, ROWS, 2), "first_segment": 0,
        "logsumexp": torch.zeros(2, ROWS), "own": torch.zeros(2, ROWS), "own_column": 0, "dims": DIMS,
        "factors": [1.0, 1.0], "scale": None, "column_sums": torch.zeros(1, 2, 128),
    },
    "contrastive_finish": {
        "product": torch.zeros(ROWS, 40), "vectors": FEATURES, "norm_part": torch.zeros(2, ROWS),
        "scale": torch.tensor(1.0), "row_scale": None, "dims": DIMS, "out": torch.zeros(ROWS, 40),
    },
    "contrastive_private_scores": {
        "queries": FEATURES, "negatives": torch.zeros(3 * ROWS, 32, dtype=torch.bfloat16), "count": 3,
        "query_ids": None, "negative_ids": None, "query_norms": torch.zeros(2, ROWS), "temperature": None,
        "dims": DIMS, "scores": PAIRS, "inverse_norms": PAIRS.clone(),
    },
    "contrastive_private_gradients": {
        "queries": FEATURES, "negatives": torch.zeros(3 * ROWS, 32, dtype=torch.bfloat16), "count": 3,
        "weights": PAIRS, "norm_part": PAIRS, "scale": torch.tensor(1.0), "row_scale": None, "dims": DIMS,
        "product": torch.zeros(ROWS, 40), "out": torch.zeros(3 * ROWS, 40),
    },
}  # fmt: skip


def call(emulated, name, **changes):
    arguments = VALID[name] | changes
    arguments = {key: to_dlpack(x) if isinstance(x, torch.Tensor) else x for key, x in arguments.items()}
    getattr(emulated, name)(**arguments, stream=0)


@pytest.mark.parametrize("name", list(VALID))
def test_the_other_bindings_take_what_is_right(emulated, name):
    call(emulated, name)


@pytest.mark.parametrize(
    ("name", "changes", "error", "message"),
    [
        ("norms", {"out": torch.zeros(2, ROWS)}, ValueError, r"out must have shape \[2, 128\]"),
        ("norms", {"dims": [16, 48]}, ValueError, "vectors must have at least 48 columns, .* got 32"),
        ("norms", {"out": None}, TypeError, "out must be a DLPack capsule"),
        ("combine", {"partials": torch.zeros(2, 2, ROWS, 4)}, ValueError, "partials must have shape"),
        ("combine", {"extra": PAIRS[:, :8]}, ValueError, "extra must have shape"),
        ("combine", {"mean": None}, TypeError, "mean must be a DLPack capsule"),
        ("combine", {"logsumexp": torch.zeros(ROWS, 2).T}, ValueError, "logsumexp must be contiguous"),
        ("weights", {"weights": torch.zeros(2, ROWS, 256)}, ValueError, "weights must have shape"),
        ("weights", {"columns": -1}, ValueError, "columns must not be negative, got -1"),
        ("weights", {"factors": [1.0]}, ValueError, "factors must be one per prefix"),
        ("weights", {"candidate_norms": torch.zeros(2, 5)}, ValueError, "candidate_norms must be"),
        ("weights", {"own_column": 2**30 + 1}, ValueError, "own_column must be within"),
        ("weights", {"column_sums": torch.zeros(2, 2, 128)}, ValueError, "column_sums must have shape"),
        ("weights", {"own": None}, TypeError, "own must be a DLPack capsule"),
        ("weights", {"logsumexp": None}, TypeError, "logsumexp must be a DLPack capsule"),
        ("weights", {"column_sums": None}, TypeError, "column_sums must be a DLPack capsule"),
        ("finish", {"product": torch.zeros(ROWS, 24)}, ValueError, "product must have a row for each vector"),
        ("finish", {"product": torch.zeros(ROWS, 40).half()}, TypeError, "product must be float32"),
        ("finish", {"norm_part": torch.zeros(2, 8)}, ValueError, "norm_part must be"),
        ("finish", {"norm_part": torch.zeros(ROWS, 2).T}, ValueError, "norm_part must be"),
        ("finish", {"out": torch.zeros(ROWS, 36)}, ValueError, "out must have a row for each vector"),
        ("finish", {"out": torch.zeros(ROWS, 40).half()}, TypeError, "out must be float32"),
        ("finish", {"row_scale": torch.zeros(8)}, ValueError, "row_scale must have shape"),
        ("finish", {"scale": None}, TypeError, "scale must be a DLPack capsule"),
        ("private_scores", {"count": 2}, ValueError, "negatives must have count rows for each query"),
        ("private_scores", {"count": 0}, ValueError, "negatives must have count rows for each query, got .* count 0"),
        ("private_scores", {"query_norms": torch.zeros(2, 8)}, ValueError, "query_norms must be"),
        ("private_scores", {"negative_ids": torch.zeros(ROWS, 2).long()}, ValueError, "negative_ids must have shape"),
        ("private_scores", {"scores": None}, TypeError, "scores must be a DLPack capsule"),
        ("private_gradients", {"weights": PAIRS[..., :2]}, ValueError, "weights must have shape"),
        ("private_gradients", {"out": torch.zeros(ROWS, 40)}, ValueError, "out must have a row for each vector"),
        ("private_gradients", {"product": torch.zeros(8, 40)}, ValueError, "product must have a row for each vector"),
        ("private_gradients", {"row_scale": torch.zeros(ROWS)}, ValueError, "row_scale must have shape"),
        ("private_gradients", {"weights": None}, TypeError, "weights must be a DLPack capsule"),
        ("private_gradients", {"norm_part": None}, TypeError, "norm_part must be a DLPack capsule"),
        ("private_gradients", {"scale": None}, TypeError, "scale must be a DLPack capsule"),
    ],
)  # fmt: skip
def test_the_other_bindings_check_every_argument(emulated, name, changes, error, message):
    with pytest.raises(error, match=message):
        call(emulated, f"contrastive_{name}", **changes)


@pytest.mark.gpu
@pytest.mark.skipif(_native.missing_reason("cuda") is not None, reason=f"no kernels: {_native.missing_reason('cuda')}")
class TestOnAGpu:
    """What only a GPU has: waiting, graphs, memory."""

    @pytest.mark.parametrize("taken", ["whole", "blocks"])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_nothing_waits(self, dtype, taken):
        features, ids = random_features(140, 2, 64, dtype, "cuda"), random_ids(140, 2, "cuda")
        labels = torch.rand(140, device="cuda")

        def step(scope):
            loss = info_nce(*features, dims=[16, 64], negative_scope=scope, backend="cuda", **ids).loss
            (loss + cosent(features[0], features[1], labels)).backward()

        with way(taken):
            for scope in ("shared", "private"):
                step(scope)  # loads kernels and libraries
                torch.cuda.set_sync_debug_mode("error")
                try:
                    step(scope)
                finally:
                    torch.cuda.set_sync_debug_mode("default")

    def test_a_graph_replays_with_other_inputs_and_another_temperature(self):
        features = random_features(140, 1, 64, torch.bfloat16, "cuda")
        tau = torch.tensor(0.05, device="cuda")

        def step():
            loss = info_nce(*features, temperature=tau, dims=[16, 64], backend="cuda").loss
            return loss, *torch.autograd.grad(loss, features)

        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        with torch.no_grad():
            features[0].normal_()
            tau.fill_(0.5)
        graph.replay()
        for mine, other in zip(captured, step(), strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=0)

    def test_memory_is_inputs_gradients_and_the_workspace(self):
        """One score matrix of 32,768 x 32,768 would be 2.1 GB in bfloat16."""
        features = random_features(32768, None, 256, torch.bfloat16, "cuda")
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        info_nce(*features, dims=[64, 128, 256], backend="cuda").loss.backward()
        gradients = 3 * 4 * features[0].numel()
        assert torch.cuda.max_memory_allocated() - before < (256 << 20) + gradients + (64 << 20)

    def test_results_go_to_the_current_stream(self):
        features = random_features(140, None, 64, torch.bfloat16, "cuda")
        expected = everything(info_nce, features, 0.05, backend="cuda")
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            found = everything(info_nce, features, 0.05, backend="cuda")
        torch.cuda.current_stream().wait_stream(side)
        for name, x in expected.items():
            torch.testing.assert_close(found[name], x, rtol=0, atol=0, msg=name)
