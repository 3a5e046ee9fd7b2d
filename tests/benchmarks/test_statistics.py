"""The benchmarks' statistics on made-up timings: a real difference is found, noise is not called one."""

import numpy as np
import pytest

from benchmarks.paired import CONFIDENCE, Timing, compare, interval_place

ROUNDS = 30


def timings(rng: np.random.Generator, factor: float, rounds: int = ROUNDS) -> tuple[list[float], list[float]]:
    """Two implementations in the same rounds: 3 % noise each, drift by up to a third, now and then a hiccup."""
    drift = 1 + np.linspace(0, rng.uniform(-0.33, 0.33), rounds) + 0.1 * rng.standard_normal()
    pair = []
    for scale in (1.0, factor):
        hiccups = 1 + (rng.random(rounds) < 0.05) * rng.exponential(2, rounds)
        pair.append((1e-3 * scale * drift * hiccups * rng.lognormal(0, 0.03, rounds)).tolist())
    return pair[0], pair[1]


def test_planted_difference_is_found() -> None:
    rng = np.random.default_rng(0)
    found = [compare(*timings(rng, factor=1.1)) for _ in range(200)]
    assert sum(one.differs is True for one in found) >= 198
    assert all(1.05 < one.ratio < 1.15 for one in found)
    assert all(compare(*timings(rng, factor=0.9)).ratio < 1 for _ in range(50))


def test_noise_is_not_called_a_difference() -> None:
    rng = np.random.default_rng(1)
    found = [compare(*timings(rng, factor=1.0)) for _ in range(1000)]
    called = sum(one.differs is True for one in found)
    assert called <= 20  # 1 % is what is allowed; of 30 rounds the interval misses with a probability of 0.52 %
    assert sum(one.low <= 1 <= one.high for one in found) >= 980


def test_unpaired_medians_would_be_fooled() -> None:
    """Why rounds are paired: with a drifting machine, measured one after the other, equals seem to differ."""
    rng = np.random.default_rng(2)
    drift = np.linspace(1, 1.3, 2 * ROUNDS)
    times = 1e-3 * drift * rng.lognormal(0, 0.03, 2 * ROUNDS)
    first, second = times[:ROUNDS], times[ROUNDS:]
    assert np.median(second) / np.median(first) > 1.1
    interleaved = compare(times[0::2].tolist(), times[1::2].tolist())
    assert interleaved.differs is False


def test_small_differences_are_not_called_one_however_sure() -> None:
    own = [1.0] * 100
    assert compare(own, [1.005] * 100).differs is False
    assert compare(own, [1.02] * 100).differs is True


@pytest.mark.parametrize("count", [1, 2, 7])
def test_too_few_rounds_are_said_to_be(count: int) -> None:
    found = compare([1.0] * count, [2.0] * count)
    assert found.differs is None and found.ratio == 2


def test_interval_covers_the_median_as_often_as_it_says() -> None:
    assert interval_place(7, CONFIDENCE) is None and interval_place(8, CONFIDENCE) == 0
    rng = np.random.default_rng(3)
    for count in (8, 30, 101):
        place = interval_place(count, CONFIDENCE)
        samples = np.sort(rng.exponential(size=(20_000, count)), axis=1)
        covered = (samples[:, place] <= np.log(2)) & (np.log(2) <= samples[:, -1 - place])
        assert covered.mean() >= CONFIDENCE - 0.002


def test_only_times_of_the_same_rounds_are_compared() -> None:
    with pytest.raises(ValueError, match="same rounds"):
        compare([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="same rounds"):
        compare([], [])


def test_summary_of_times() -> None:
    found = Timing.of([0.001 * i for i in (3, 1, 2, 5, 4)])
    assert (found.median_ms, found.rounds) == (pytest.approx(3), 5)
    assert (found.low_ms, found.high_ms) == (pytest.approx(1.4), pytest.approx(4.6))
