"""The CPU emulation of CUDA (csrc/emulation) catches mistakes in kernels, and passes the same kernels without them.

Results depend on the scheduler's seed alone, so a mistake shows at the same seeds in each run. The bounds below leave
room for changes of the scheduler.
"""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.emulation.seeds import errors, outputs, passes, random_floats, wrong_seeds

ALL_LANES = 0xFFFFFFFF


def assert_calls_are_named(text, call, count):
    """`text` names `count` different places, "file:line", and each of these lines holds `call`."""
    places = set(re.findall(r"(\w+\.cpp):(\d+)", text))
    assert len(places) == count, text
    for file, line in places:
        assert call in (Path(__file__).parent / file).read_text().splitlines()[int(line) - 1]


# ---- Barriers

MISSING_BARRIERS = pytest.mark.parametrize("mistake", ["no barrier after writing", "no barrier before overwriting"])


@MISSING_BARRIERS
def test_a_missing_syncthreads_changes_results(kernels, mistake):
    x = random_floats(128)
    expected, shape = np.roll(x, -5 * 33), {"block": 128, "shared": 512}
    assert wrong_seeds(kernels, "rotate", x, expected, 5, **shape) == 0
    assert wrong_seeds(kernels, f"rotate, {mistake}", x, expected, 5, **shape) >= 18  # seen: 20 of 20


def test_a_missing_syncthreads_shows_even_between_two_warps_that_pass_once(kernels):
    x = random_floats(64)
    expected, shape = np.roll(x, -33), {"block": 64, "shared": 256}
    assert wrong_seeds(kernels, "rotate", x, expected, 1, **shape) == 0
    assert wrong_seeds(kernels, "rotate, no barrier after writing", x, expected, 1, **shape) >= 18  # seen: 20 of 20


@MISSING_BARRIERS
def test_a_missing_syncwarp_changes_results(kernels, mistake):
    x = random_floats(32)
    expected = np.roll(x, -25)
    assert wrong_seeds(kernels, "rotate lanes", x, expected, 5, shared=128) == 0
    assert wrong_seeds(kernels, f"rotate lanes, {mistake}", x, expected, 5, shared=128) >= 18  # seen: 20 of 20


@MISSING_BARRIERS
def test_a_missing_syncthreads_around_static_shared_memory_changes_results(kernels, mistake):
    x = np.arange(6 * 64, dtype=np.float32)  # whose sums are exact
    expected = x.reshape(6, 64).sum(1)
    assert wrong_seeds(kernels, "row sums", x, expected, 6, block=64) == 0
    assert wrong_seeds(kernels, f"row sums, {mistake}", x, expected, 6, block=64) >= 15  # seen: 19 and 20 of 20


# ---- cp.async

TILES = random_floats(6, 64, 4)
TILES_READ = np.ascontiguousarray(TILES[:, ::-1])
TILES_SHAPE = {"block": 64, "shared": 2 * 64 * 16}


def test_tiles_are_copied_through_two_buffers(kernels):
    assert wrong_seeds(kernels, "copy tiles", TILES, TILES_READ, 6, **TILES_SHAPE) == 0


@pytest.mark.parametrize(
    ("mistake", "tiles"),
    [
        ("no wait", [0, 1, 2, 3, 4, 5]),
        ("wait leaves too many", [0, 1]),  # and then the tile that was in the buffer before
        ("first commit missing", [0]),
    ],
)
def test_data_read_before_the_wait_are_nan(kernels, mistake, tiles):
    for out in outputs(kernels, f"copy tiles, {mistake}", TILES, TILES.shape, 6, **TILES_SHAPE):
        assert np.isnan(out[tiles]).all()


@pytest.mark.parametrize("mistake", ["no barrier after wait", "barrier before wait", "no barrier before copy"])
def test_a_missing_barrier_around_a_copy_changes_results(kernels, mistake):
    wrong = list(outputs(kernels, f"copy tiles, {mistake}", TILES, TILES.shape, 6, **TILES_SHAPE))
    assert sum(not np.array_equal(out, TILES_READ) for out in wrong) >= 18  # seen: 20 of 20
    assert any(np.isnan(out).any() for out in wrong)


@pytest.mark.parametrize("mistake", ["no commit", "never waited"])
def test_a_thread_that_exits_with_copies_under_way_is_an_error(kernels, mistake):
    out = np.empty_like(TILES)
    for text in errors(kernels, f"copy tiles, {mistake}", TILES, out, 6, **TILES_SHAPE):
        assert re.search(r"block \(0,0,0\), thread \(\d+,0,0\) .*cp.async never waited for", text)


@pytest.mark.parametrize("size", [4, 16])
@pytest.mark.parametrize("valid", [0, 1, 17, 64])
def test_copies_that_are_not_valid_give_zeros_and_read_nothing(kernels, size, valid):
    x = random_floats(max(valid, 1), size // 4)  # the other addresses are past the end
    expected = np.zeros((64, size // 4), np.float32)
    expected[:valid] = x[:valid]
    assert wrong_seeds(kernels, f"copy valid {size}", x, expected, valid, block=64, shared=64 * size) == 0


def test_writing_over_the_source_of_a_copy_under_way_shows(kernels):
    for name, expected in (("copy, then clear", 7), ("copy, clear too early", 0)):
        source, out = np.full(64, 7, np.float32), np.empty(64, np.float32)
        kernels.launch(name, source, out, block=64, shared=256)
        assert (out == expected).all() and not source.any()


# ---- Bounds and alignment


@pytest.mark.parametrize("size", [4, 16])
def test_cp_async_names_the_bytes_outside_of_shared_memory(kernels, size):
    x, shape = random_floats(4), {"block": 1, "shared": 512}
    for offset in (0, 512 - size):
        passes(kernels, f"cp.async {size} at", x, offset, **shape)
    for offset in (512, -size, 512 - size // 2, 4096):
        (text,) = set(errors(kernels, f"cp.async {size} at", x, offset, **shape))
        assert f"cp.async: bytes [{offset}, {offset + size}) outside of the 512 bytes" in text


def test_cp_async_needs_aligned_addresses(kernels):
    x, shape = random_floats(8), {"block": 1, "shared": 512}
    assert "offset 8 in shared memory is not a multiple of 16" in errors(kernels, "cp.async 16 at", x, 8, **shape)[0]
    assert "offset 2 in shared memory is not a multiple of 4" in errors(kernels, "cp.async 4 at", x, 2, **shape)[0]
    passes(kernels, "cp.async from", x, 0, **shape)
    passes(kernels, "cp.async from", x, 4, **shape)
    assert re.search("global address 0x[0-9a-f]+ is not a multiple", errors(kernels, "cp.async from", x, 1, **shape)[0])


@pytest.mark.parametrize(("name", "rows"), [("ldmatrix at", 32), ("ldmatrix transposed at", 16)])
def test_ldmatrix_names_the_bytes_outside_of_shared_memory(kernels, name, rows):
    out, shared = np.empty(128, np.uint32), 16 * rows
    instruction = {"ldmatrix at": "ldmatrix.x4", "ldmatrix transposed at": "ldmatrix.x2.trans"}[name]
    passes(kernels, name, out, 0, shared=shared)
    for offset, begin in ((16, shared), (-16, -16)):  # the last row, the first row
        for text in errors(kernels, name, out, offset, shared=shared):
            assert f"{instruction}: bytes [{begin}, {begin + 16}) outside of the {shared} bytes" in text
    assert "ldmatrix.x4: an address outside of" in errors(kernels, "ldmatrix at", out, -(2**31), shared=512)[0]


def test_ldmatrix_needs_rows_aligned_to_16_bytes(kernels):
    out = np.empty(128, np.uint32)
    passes(kernels, "ldmatrix at", out, 16, shared=1024)
    for text in errors(kernels, "ldmatrix at", out, 8, shared=1024):
        lane = int(re.search(r"lane (\d+)\)", text)[1])
        assert f"ldmatrix.x4: offset {8 + 16 * lane} in shared memory is not a multiple of 16" in text


def test_a_store_around_dynamic_shared_memory_is_noticed_at_the_end_of_the_block(kernels):
    shape = {"block": 1, "shared": 512}
    passes(kernels, "store shared", 0, **shape)
    passes(kernels, "store shared", 127, **shape)
    assert "byte 512, past the end of 512," in errors(kernels, "store shared", 128, **shape)[0]
    assert "byte 1532, past the end of 512," in errors(kernels, "store shared", 383, **shape)[0]
    assert "byte -4, before the start," in errors(kernels, "store shared", -1, **shape)[0]
    assert "byte 0, past the end of 0," in errors(kernels, "store shared", 0, block=1)[0]


# ---- Collectives that not all lanes reach


@pytest.mark.parametrize(
    ("name", "instructions"),
    [
        ("mma or ldmatrix", ("mma.m16n8k16.bf16", "ldmatrix.x4")),
        ("bf16 mma or fp16 mma", ("mma.m16n8k16.bf16", "mma.m16n8k16.f16")),
        ("ldmatrix or ldmatrix.trans", ("ldmatrix.x4", "ldmatrix.x4.trans")),
        ("ldmatrix.x4 or .x2", ("ldmatrix.x4", "ldmatrix.x2")),
        ("shuffle xor or down", ("__shfl_xor_sync", "__shfl_down_sync")),
        ("shuffle or ballot", ("__shfl_xor_sync", "__ballot_sync")),
    ],
)
def test_lanes_that_meet_under_two_names_are_an_error(kernels, name, instructions):
    shape = {"block": 64, "shared": 512}
    passes(kernels, name, 32, **shape)
    for lanes in (16, 31):
        for text in errors(kernels, name, lanes, **shape):
            found = re.search(
                r"lane (\d+)\): .*the lane comes to (\S+) \(mask 0xffffffff\), the others are at: (.*)", text
            )
            comes, other = (instructions[int(found[1]) >= lanes], instructions[int(found[1]) < lanes])
            assert found[2] == comes
            assert re.search(rf"warp [01] .*lanes? [0-9, -]+ at {re.escape(other)}(,|$)", found[3])


@pytest.mark.parametrize(
    ("name", "instruction"), [("mma or exit", "mma.m16n8k16.bf16"), ("ldmatrix or exit", "ldmatrix.x4")]
)
def test_a_warp_instruction_after_a_lane_has_exited_is_an_error(kernels, name, instruction):
    shape = {"block": 64, "shared": 512}
    passes(kernels, name, 32, **shape)
    exits_last = rf"the thread exits, others wait for it: warp \d .*lanes? [0-9, -]+ at {instruction}"
    exits_first = rf"{instruction} needs lane (\d+), which has exited"
    for lanes in (16, 31):
        texts = errors(kernels, name, lanes, **shape)
        assert all(re.search(f"divergent collective: ({exits_last}|{exits_first})", text) for text in texts)
        assert any(re.search(exits_last, text) for text in texts)
        assert any(re.search(exits_first, text) for text in texts)


@pytest.mark.parametrize(
    ("name", "instruction"),
    [
        ("mma or nothing", "mma.m16n8k16.bf16"),
        ("ldmatrix or nothing", "ldmatrix.x4"),
        ("shuffle or nothing", "__shfl_xor_sync"),
    ],
)
def test_half_a_warp_that_waits_for_ever_is_a_deadlock_that_names_both_halves(kernels, name, instruction):
    shape = {"block": 64, "shared": 512}
    passes(kernels, name, 32, **shape)
    passes(kernels, name, 0, **shape)
    for text in errors(kernels, name, 16, **shape):
        for warp in (0, 1):
            assert f"warp {warp} lanes 0-15 at {instruction}, lanes 16-31 at __syncthreads (meetings.cpp" in text
        assert text.startswith("deadlock in block (0,0,0): ")
        assert_calls_are_named(text, "__syncthreads()", 1)


def test_lanes_that_name_each_other_in_different_masks_are_an_error(kernels):
    passes(kernels, "masks", 16, 0x0000FFFF, 0xFFFF0000)
    for text in errors(kernels, "masks", 16, 0x00FFFFFF, ALL_LANES):
        assert re.search(
            r"the lane comes to __shfl_xor_sync \(mask 0x(00|ff)ffffff\), the others are at: warp 0 ", text
        )


def test_a_lane_outside_of_its_own_mask_is_an_error(kernels):
    for text in errors(kernels, "masks", 16, 0x0000FFFF, 0x0000FFFF):
        assert re.search(r"lane (1[6-9]|2.|3.)\): __shfl_xor_sync: the lane is not in its own mask 0x0000ffff", text)


def test_a_shuffle_from_a_lane_that_has_exited_is_an_error(kernels):
    out = np.zeros(32, np.int32)
    passes(kernels, "shuffle after exit", out, 16, 3)
    assert (out[:16] == 103).all() and not out[16:].any()
    for text in errors(kernels, "shuffle after exit", out, 16, 20):
        assert re.search(r"shuffle: lane \d+ reads from lane 20, which does not take part", text)


# ---- Barriers and deadlocks


def test_a_barrier_in_two_branches_of_one_warp_is_an_error(kernels):
    passes(kernels, "one barrier in two branches", 32, block=64)
    passes(kernels, "one barrier in two branches", 0, block=64)
    for text in errors(kernels, "one barrier in two branches", 16, block=64):
        assert re.search(
            r"divergent barrier: the lane comes to .*, the others are at: warp [01] .*at __syncthreads", text
        )
        assert_calls_are_named(text, "__syncthreads()", 2)


def test_syncthreads_does_not_wait_for_threads_that_have_exited(kernels):
    out = np.zeros(96, np.int32)
    passes(kernels, "barriers of those left", out, 2, 3, block=96)
    assert (out == [5] * 32 + [2] * 64).all()


def test_a_syncthreads_that_not_all_warps_reach_is_a_deadlock(kernels):
    passes(kernels, "two kinds of barrier", 64, block=96)
    for text in errors(kernels, "two kinds of barrier", 96, block=96):
        assert "warp 0 waits at __syncthreads (" in text
        for warp in (1, 2):
            assert f"warp {warp} waits at named barrier 3 with 64 of 96 threads (" in text
        assert_calls_are_named(text.split(", warp")[0], "__syncthreads()", 1)
        assert_calls_are_named(text.split(", warp")[1], "NAMED_BARRIER(3, threads)", 1)


def test_pairs_of_warps_meet_at_named_barriers_of_their_own(kernels):
    x = random_floats(128)
    swapped = np.ascontiguousarray(x.reshape(2, 2, 32)[:, ::-1]).reshape(128)
    shape = {"block": 128, "shared": 512}
    assert wrong_seeds(kernels, "exchange in pairs", x, swapped, 3, 64, **shape) == 0
    assert wrong_seeds(kernels, "exchange in pairs", x, swapped, 3, 32, **shape) >= 18  # nobody waits; seen: 20 of 20
    for text in errors(kernels, "exchange in pairs", x, swapped, 3, 96, **shape):
        for warp in range(4):
            assert f"warp {warp} waits at named barrier {1 + warp // 2} with 64 of 96 threads (" in text
        assert_calls_are_named(text, "NAMED_BARRIER(barrier, threads)", 1)


def test_named_barriers_check_their_numbers(kernels):
    passes(kernels, "named barrier of", 0, 64, block=64)
    passes(kernels, "named barrier of", 15, 64, block=64)
    for number in (16, -1):
        (text, *_) = errors(kernels, "named barrier of", number, 64, block=64)
        assert f"named barrier {number} at " in text and "there are barriers 0 to 15" in text
        assert_calls_are_named(text, "NAMED_BARRIER(id, threads)", 1)
    for threads in (0, -32, 48, 96):
        (text, *_) = errors(kernels, "named barrier of", 1, threads, block=64)
        assert f"{threads} threads are not a multiple of 32 that the block of 64 has" in text


def test_warps_that_count_different_threads_are_an_error(kernels):
    passes(kernels, "warps count differently", 96, 96, block=96)
    for text in errors(kernels, "warps count differently", 96, 64, block=96):
        assert re.search("barrier 1 at .* another thread count|warp 0 waits at named barrier 1 with 32 of 96", text)


def test_named_barriers_in_crossed_order_are_a_deadlock(kernels):
    passes(kernels, "two barriers", block=64)
    for text in errors(kernels, "two barriers, crossed", block=64):
        assert re.fullmatch(
            r"deadlock in block \(0,0,0\): warp 0 waits at named barrier 1 with 32 of 64 threads \(.*\), "
            r"warp 1 waits at named barrier 2 with 32 of 64 threads \(.*\)",
            text,
        )
        assert_calls_are_named(text, "NAMED_BARRIER(other_way ? 2 : 1, 64)", 1)


# ---- After an error


def test_an_error_does_not_affect_the_next_launch(kernels):
    x, out = random_floats(128), np.zeros(1024, np.float32)
    wrong = [
        ("mma or exit", (16,), {"block": 64}),
        ("mma or nothing", (16,), {"block": 128}),
        ("masks", (16, 0x00FFFFFF, ALL_LANES), {}),
        ("one barrier in two branches", (16,), {"block": 1024}),
        ("two barriers, crossed", (), {"block": 64}),
        ("copy tiles, never waited", (TILES, np.empty_like(TILES), 6), TILES_SHAPE),
        ("store shared", (128,), {"block": 1, "shared": 512}),
        ("ldmatrix at", (np.empty(128, np.uint32), 8), {"shared": 512}),
        ("trap in", (2, 37), {"grid": 4, "block": 64}),
        ("rotate", (x, out, 1), {"block": 1025}),
    ]
    for name, arguments, shape in wrong:
        errors(kernels, name, *arguments, **shape)
        assert wrong_seeds(kernels, "rotate", x, np.roll(x, -5 * 33), 5, block=128, shared=512) == 0
        assert wrong_seeds(kernels, "copy tiles", TILES, TILES_READ, 6, **TILES_SHAPE) == 0


def test_a_trap_names_the_thread(kernels):
    passes(kernels, "trap in", 2, 64, grid=4, block=64)
    for text in errors(kernels, "trap in", 2, 37, grid=4, block=64):
        assert text == "block (2,0,0), thread (37,0,0) (warp 1, lane 5): __trap()"
