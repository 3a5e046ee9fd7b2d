"""The CPU emulation of CUDA (csrc/emulation) computes what CUDA documents, in an order that depends on a seed."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from tests.emulation.seeds import SEEDS, errors, passes, random_floats, wrong_seeds
from tests.emulation.small_kernels import KernelError

LANES = np.arange(32)
ALL_LANES = 0xFFFFFFFF


# ---- Launches


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"block": 0}, r"block \(0,1,1\) is empty"),
        ({"block": 1025}, r"block \(1025,1,1\) .* more than 1024 threads"),
        ({"block": (32, 32, 2)}, r"block \(32,32,2\) .* more than 1024 threads"),
        ({"block": (1, 1, 65)}, r"block \(1,1,65\)"),
        ({"grid": 0}, r"grid \(0,1,1\) is empty"),
        ({"grid": (1, 65536)}, r"grid \(1,65536,1\) is empty or too large"),
        ({"grid": (1, 1, 65536)}, r"grid \(1,1,65536\) is empty or too large"),
        ({"shared": 227 * 1024 + 1}, "232449 bytes of dynamic shared memory, at most 232448"),
    ],
)
def test_an_invalid_launch_is_an_error(kernels, shape, message):
    with pytest.raises(KernelError, match=f"launch: {message}"):
        kernels.launch("lane order", np.zeros(1, np.uint32), np.zeros(2048, np.int32), 1, **shape)


def test_the_largest_block_runs(kernels):
    x = random_floats(1024)
    assert wrong_seeds(kernels, "rotate", x, np.roll(x, -33), 1, block=1024, shared=227 * 1024) == 0


def test_two_host_threads_launch_at_the_same_time(kernels):
    x = np.arange(6 * 64, dtype=np.float32)

    def sums(_):
        out = np.zeros(6, np.float32)
        for _ in range(20):
            kernels.launch("row sums", x, out, 6, block=64)
            assert (out == x.reshape(6, 64).sum(1)).all()
        with pytest.raises(KernelError, match="deadlock"):
            kernels.launch("two barriers, crossed", block=64)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(sums, range(8)))


def test_statistics_count_the_launches_that_finished(kernels):
    before = kernels.statistics()
    kernels.launch("rotate lanes", random_floats(32), random_floats(32), 3, grid=5, shared=128)
    with pytest.raises(KernelError):
        kernels.launch("mma or nothing", 16)
    after = kernels.statistics()
    added = {key: after[key] - before[key] for key in after}
    assert added == {"launches": 1, "blocks": 5, "collectives": 5 * 3 * 2, "bank_conflicts": 0}


# ---- The order of threads


def noted_order(kernels, name, length, *numbers, seed=0, **launch):
    kernels.set_seed(seed)
    count, order = np.zeros(1, np.uint32), np.full(length, -1, np.int32)
    kernels.launch(name, count, order, *numbers, **launch)
    assert count[0] == length
    return order


def test_a_warp_runs_as_far_ahead_as_it_can(kernels):
    orders = [noted_order(kernels, "warp order", 4 * 50, 50, block=128, seed=seed).reshape(4, 50) for seed in SEEDS]
    for order in orders:  # 50 entries of one warp, with 50 collectives in between, before another moves
        assert (order == order[:, :1]).all() and sorted(order[:, 0]) == [0, 1, 2, 3]
    assert len({tuple(order[:, 0]) for order in orders}) >= 10  # of 24 orders; seen: 14
    assert {order[0, 0] for order in orders} == {0, 1, 2, 3}


def test_each_barrier_changes_the_order_of_warps(kernels):
    name = "warp order between barriers"
    order = noted_order(kernels, name, 4 * 40, 40, block=128).reshape(40, 4)
    assert (np.sort(order) == [0, 1, 2, 3]).all()
    assert len({tuple(row) for row in order}) >= 15
    # The warp that came last, and so opened the barrier, is one of the four that may go on first.
    goes_on = order[1:, 0] == order[:-1, -1]
    assert goes_on.any() and not goes_on.all()


def test_lanes_run_in_varied_order_between_collectives(kernels):
    order = noted_order(kernels, "lane order", 32 * 20, 20).reshape(20, 32)
    assert (np.sort(order) == LANES).all()
    assert len({tuple(row) for row in order}) == 20
    assert (order != LANES).any(1).all() and (order != LANES[::-1]).any(1).all()
    assert len(set(order[:, 0])) >= 8  # lanes that come first


def test_blocks_run_in_varied_order(kernels):
    orders = {tuple(noted_order(kernels, "block order", 8, grid=8, seed=seed)) for seed in SEEDS}
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert len(orders) >= 18


def test_the_order_follows_from_the_seed_alone(kernels):
    def order(seed):
        return tuple(noted_order(kernels, "lane order", 8 * 64 * 3, 3, grid=8, block=64, seed=seed))

    first = [order(seed) for seed in SEEDS]
    errors(kernels, "mma or exit", 16, block=64)
    assert [order(seed) for seed in SEEDS] == first
    assert len(set(first)) == len(SEEDS)


# ---- What built-ins compute


def test_block_and_thread_indices(kernels):
    grid, block = (3, 2, 4), (5, 3, 2)
    threads = 30 * 24
    out = np.zeros((threads, 12), np.uint32)
    passes(kernels, "indices", out, grid=grid, block=block)

    def triples(size):
        return np.stack(np.unravel_index(np.arange(np.prod(size)), size[::-1])[::-1], 1)  # x first

    assert (out[:, 0:3] == triples(grid).repeat(30, 0)).all()
    assert (out[:, 3:6] == np.tile(triples(block), (24, 1))).all()
    assert (out[:, 6:9] == grid).all() and (out[:, 9:12] == block).all()


def test_thread_wrappers(kernels):
    out, threads = np.zeros((96, 3), np.int32), np.arange(96)
    passes(kernels, "thread wrappers", out, block=96)
    assert (out == np.stack([threads, threads // 32, threads % 32], 1)).all()


@pytest.mark.parametrize("width", [32, 16, 8, 4, 2, 1])
@pytest.mark.parametrize("dtype", ["int", "float", "double"])
def test_shuffles(kernels, width, dtype):
    dtype_of = {"int": np.int32, "float": np.float32, "double": np.float64}
    x = (random_floats(32) * 1000).astype(dtype_of[dtype])
    arguments = np.random.default_rng(width).integers(0, 32, 32).astype(np.int32)
    out = np.zeros((4, 32), x.dtype)
    passes(kernels, f"shuffles of {dtype}", x, out, arguments, width)

    first, last = LANES // width * width, LANES // width * width + width - 1  # of the lane's segment
    xor, up, down = LANES ^ arguments, LANES - arguments, LANES + arguments
    assert (out[0] == x[first + arguments % width]).all()
    assert (out[1] == x[np.where(xor <= last, xor, LANES)]).all()  # earlier segments can be read, later ones cannot
    assert (out[2] == x[np.where(up >= first, up, LANES)]).all()
    assert (out[3] == x[np.where(down <= last, down, LANES)]).all()


def test_halves_of_a_warp_shuffle_each_for_itself(kernels):
    x = np.arange(100, 132, dtype=np.int32)
    expected = x[LANES ^ np.where(LANES < 16, 1, 3)]
    assert wrong_seeds(kernels, "shuffle in halves", x, expected) == 0


@pytest.mark.parametrize("mask", [ALL_LANES, 0x0000FFFF, 0x80F0_0F01])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_votes(kernels, mask, share):
    # Any number but 0 counts as true.
    predicates = np.where(np.random.default_rng(1).random(32) < share, -7, 0).astype(np.int32)
    takes_part = (mask >> LANES & 1).astype(bool)
    out = np.full((3, 32), 99, np.uint32)
    passes(kernels, "votes", predicates, out, mask)
    yes = (predicates != 0) & takes_part
    expected = [sum(1 << int(lane) for lane in LANES[yes]), yes.any(), (yes == takes_part).all()]
    assert (out[:, takes_part] == np.array(expected)[:, None]).all()
    assert (out[:, ~takes_part] == 99).all()


def test_quad_reductions(kernels):
    x = random_floats(32)
    x[[5, 9]] = np.nan, np.inf
    out = np.zeros((2, 32), np.float32)
    passes(kernels, "quads", x, out)
    quads = x.reshape(8, 4)
    np.testing.assert_array_equal(out[0], np.fmax.reduce(quads, 1).repeat(4))  # the number, if one is NaN
    np.testing.assert_allclose(out[1], quads.sum(1).repeat(4), rtol=1e-6, atol=1e-6)


def test_atomics(kernels):
    shape, rng = {"grid": 3, "block": 64}, np.random.default_rng(0)
    x = rng.integers(-(2**31), 2**31, 192).astype(np.int32)
    for seed in SEEDS:
        kernels.set_seed(seed)
        out, old = np.zeros(6, np.int32), np.zeros(192, np.int32)
        kernels.launch("integer atomics", x, out, old, **shape)
        assert sorted(old) == list(range(192))  # each thread saw another value
        assert (out[:4] == [192, x.sum(dtype=np.int32), x.max(), x.min()]).all()  # sums wrap
        assert out[4] in x and out[5] == 2**31 - 1

    y, out = rng.integers(0, 2**32, 192).astype(np.uint32), np.array([0, 0, 2**32 - 1], np.uint32)
    kernels.launch("unsigned atomics", y, out, **shape)
    assert (out == [y.sum(dtype=np.uint32), y.max(), y.min()]).all()

    z, out, out_double = random_floats(192), np.zeros(4, np.float32), np.zeros(1)
    kernels.launch("float atomics", z, out, out_double, **shape)
    np.testing.assert_allclose(out, np.array([1, 0, 1, -1]) * z.sum(), rtol=1e-4)
    np.testing.assert_allclose(out_double, z.sum(dtype=np.float64), rtol=1e-12)


def test_dynamic_shared_memory_is_nan_when_a_block_starts(kernels):
    out, aligned = np.zeros((5, 64), np.float32), np.zeros(5, np.uint32)
    passes(kernels, "fresh shared memory", out, aligned, grid=5, block=64, shared=256)
    assert np.isnan(out).all() and (out.view(np.uint32) == 0xFFFFFFFF).all() and aligned.all()


def test_static_shared_memory(kernels):
    x = np.arange(64, dtype=np.int32)
    assert wrong_seeds(kernels, "static shared memory", x, 1001 * x[::-1], block=64) == 0


# ---- 16-bit formats and the special function unit

FORMATS = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])


def name_of(dtype):
    return str(dtype).removeprefix("torch.")


def bits(x):
    return x.view(torch.int16).numpy().view(np.uint16)


def packed(kernels, x, dtype):
    out = np.zeros(x.size // 2, np.uint32)
    kernels.launch(f"pack {name_of(dtype)}", x, out, out.size, block=64)
    return out.view(np.uint16)


@FORMATS
def test_all_16_bit_numbers_unpack_as_in_torch(kernels, dtype):
    patterns, out = np.arange(65536, dtype=np.uint16), np.zeros(65536, np.float32)
    kernels.launch(f"unpack {name_of(dtype)}", patterns.view(np.uint32), out, 32768, block=64)
    expected = torch.from_numpy(patterns.view(np.int16)).view(dtype).float().numpy()
    number = ~np.isnan(expected)
    assert (out.view(np.uint32)[number] == expected.view(np.uint32)[number]).all()  # the sign of zero, too
    assert np.isnan(out[~number]).all()
    assert (packed(kernels, out, dtype)[number] == patterns[number]).all()


@FORMATS
def test_numbers_are_packed_as_in_torch(kernels, dtype):
    rng = np.random.default_rng(0)
    values = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype).float()
    values = values[values.isfinite()].unique()
    ties = ((values[1:].double() + values[:-1].double()) / 2).numpy().astype(np.float32)
    x = np.concatenate(
        [
            ties, np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(-np.inf)),
            rng.integers(0, 2**32, 300_000).astype(np.uint32).view(np.float32),  # every exponent, NaN among them
            (rng.standard_normal(100_000) * 10.0 ** rng.uniform(-9, 6, 100_000)).astype(np.float32),
            np.float32([0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 65504, 65519.996, 65520, -65520, 3.4e38, -3.4e38]),
            np.uint32([1, 0x80000001, 0x7FFFFF, 0x7F7F8000, 0x7F7F7FFF, 0x7F800001, 0xFFFFFFFF, 0x33000000, 0x33000001])
            .view(np.float32),
        ]
    )  # fmt: skip
    x = x[: x.size // 2 * 2]
    expected = torch.from_numpy(x).to(dtype)
    mine, nan = packed(kernels, x, dtype), expected.isnan().numpy()
    assert nan.sum() > 1000 and (mine[nan] == 0x7FFF).all()  # the one NaN that cvt makes
    assert (mine[~nan] == bits(expected)[~nan]).all()


def test_exp2_and_log2_at_their_ends(kernels):
    def both(x):
        x = np.float32(x)
        exp2, log2 = np.zeros_like(x), np.zeros_like(x)
        kernels.launch("exp2 and log2", x, exp2, log2, x.size)
        return exp2, log2

    inf, nan, tiny = np.inf, np.nan, 2.0**-126
    # Results below the smallest normal number are zero (.ftz), and so are arguments.
    exp2, _ = both([-inf, -1000, -149, -126.5, -126, -1, -1e-40, -0.0, 0, 1e-40, 0.5, 127, 128, inf, nan])
    np.testing.assert_array_equal(
        exp2, np.float32([0, 0, 0, 0, tiny, 0.5, 1, 1, 1, 1, 2**0.5, 2.0**127, inf, inf, nan])
    )
    assert not np.signbit(exp2).any()
    _, log2 = both([0, -0.0, 1e-40, -1e-40, tiny, 0.25, 1, 2, 2.0**127, inf, -1, -inf, nan])
    np.testing.assert_array_equal(log2, np.float32([-inf] * 4 + [-126, -2, 0, 1, 127, inf, nan, nan, nan]))

    x = np.random.default_rng(0).uniform(-125, 125, 10_000).astype(np.float32)
    np.testing.assert_allclose(both(x)[0], np.exp2(x.astype(np.float64)), rtol=2.0**-22)
    np.testing.assert_allclose(both(np.abs(x))[1], np.log2(np.abs(x).astype(np.float64)), rtol=2.0**-22, atol=2.0**-22)


# ---- Tensor core

# Where a lane holds the elements i of a fragment of mma.m16n8k16, as in the PTX manual: (row, column), [32, i].
GROUP, THREAD = LANES[:, None] // 4, LANES[:, None] % 4


def places_in_a():
    i = np.arange(8)
    return np.where(i % 4 < 2, GROUP, GROUP + 8), THREAD * 2 + i % 2 + np.where(i < 4, 0, 8)


def places_in_b():
    i = np.arange(4)
    return THREAD * 2 + i % 2 + np.where(i < 2, 0, 8), GROUP + 0 * i


def places_in_c():
    i = np.arange(4)
    return np.where(i < 2, GROUP, GROUP + 8), THREAD * 2 + i % 2


def registers(matrix, places):
    return np.ascontiguousarray(bits(matrix)[places]).view(np.uint32)


def product_by_mma(kernels, a, b, c, times=1):
    """c + times * (a b), by mma.m16n8k16 in the format of a and b."""
    d = np.ascontiguousarray(c[places_in_c()])
    kernels.launch(
        f"multiply {name_of(a.dtype)}", registers(a, places_in_a()), registers(b, places_in_b()), d, times, block=32
    )
    out = np.full((16, 8), np.nan, np.float32)
    out[places_in_c()] = d
    return out


@FORMATS
@pytest.mark.parametrize("seed", range(5))
def test_mma_multiplies_and_adds(kernels, dtype, seed):
    kernels.set_seed(seed)
    a, b = (torch.from_numpy(random_floats(*shape, seed=seed)).to(dtype) for shape in ((16, 16), (16, 8)))
    c = random_floats(16, 8, seed=seed + 100)
    for times in (1, 3):
        exact = c + times * (a.double() @ b.double()).numpy()
        np.testing.assert_allclose(product_by_mma(kernels, a, b, c, times), exact, rtol=1e-5, atol=1e-5)


@FORMATS
def test_mma_keeps_nan_in_its_row_or_column(kernels, dtype):
    a, b = torch.ones(16, 16, dtype=dtype), torch.ones(16, 8, dtype=dtype)
    a[3, 5], b[7, 2] = torch.nan, torch.inf
    out = product_by_mma(kernels, a, b, np.zeros((16, 8), np.float32))
    expected = np.full((16, 8), 16, np.float32)
    expected[:, 2] = np.inf
    expected[3] = np.nan
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("matrices", [2, 4])
@pytest.mark.parametrize(("pitch", "swizzle"), [(16, 0), (144, 0), (128, 7)])
def test_ldmatrix_gives_each_lane_a_pair_of_each_matrix(kernels, matrices, transposed, pitch, swizzle):
    x = np.random.default_rng(0).integers(0, 65536, (matrices, 8, 8)).astype(np.uint16)
    out = np.zeros((32, matrices), np.uint32)
    name = f"load {matrices} matrices" + ", transposed" * transposed
    passes(kernels, name, x, out, pitch, swizzle, shared=8 * matrices * pitch + 112)
    read = x.swapaxes(1, 2) if transposed else x
    pairs = out.view(np.uint16).reshape(8, 4, matrices, 2)  # group, thread in group, matrix, element
    assert (pairs == read.reshape(matrices, 8, 4, 2).transpose(1, 2, 0, 3)).all()


@pytest.mark.parametrize(
    ("pitch", "swizzle", "passes_more"),
    [
        (128, 0, 7),  # every row in the same 4 banks
        (256, 0, 7),
        (64, 0, 3),
        (32, 0, 1),
        (128, 7, 0),  # swizzled
        (144, 0, 0),  # padded by a chunk
        (16, 0, 0),
        (0, 0, 0),  # one row for all lanes
    ],
)
def test_ldmatrix_counts_bank_conflicts(kernels, pitch, swizzle, passes_more):
    x, out = np.zeros((4, 8, 8), np.uint16), np.zeros(128, np.uint32)
    for matrices in (2, 4):
        before = kernels.statistics()["bank_conflicts"]
        kernels.launch(f"load {matrices} matrices", x, out, pitch, swizzle, shared=32 * pitch + 128)
        assert kernels.statistics()["bank_conflicts"] - before == matrices * passes_more


def test_gemm_with_cp_async_ldmatrix_and_mma(kernels):
    a, b = (torch.from_numpy(random_floats(*shape)).half() for shape in ((64, 32), (32, 32)))
    out, before = np.zeros((64, 32), np.float32), kernels.statistics()["bank_conflicts"]
    passes(kernels, "tile gemm", bits(a), bits(b), out, block=128, shared=96 * 80)
    np.testing.assert_allclose(out, (a.double() @ b.double()).numpy(), rtol=1e-5, atol=1e-5)
    assert kernels.statistics()["bank_conflicts"] == before
