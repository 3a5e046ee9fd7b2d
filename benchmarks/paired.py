"""Statistics of interleaved measurements: which differences are more than noise.

Two implementations that are compared run in the same rounds, one after the other in random order. Drift of clocks,
temperature and other load affects both times of a round. The statistic is therefore the ratio within a round: its
median over the rounds, with an interval by order statistics, which assumes only that rounds are independent (they
nearly are: what they share cancels in the ratio).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.99  # of an interval
LEAST_DIFFERENCE = 0.01  # less is not called a difference, however certain: placement in memory alone makes as much


@dataclass(frozen=True)
class Timing:
    """Milliseconds over `rounds` repeats: median, 10th and 90th percentile."""

    median_ms: float
    low_ms: float
    high_ms: float
    rounds: int

    @staticmethod
    def of(seconds: Sequence[float]) -> "Timing":
        median, low, high = np.quantile(seconds, (0.5, 0.1, 0.9)).tolist()
        return Timing(1e3 * median, 1e3 * low, 1e3 * high, len(seconds))


@dataclass(frozen=True)
class Comparison:
    """ratio: the median of other time / baseline time over the rounds; low, high: its interval.

    differs: whether the whole interval lies on one side of 1 and the ratio is more than LEAST_DIFFERENCE from it; None
    if there are too few rounds for an interval.
    """

    ratio: float
    low: float
    high: float
    differs: bool | None


def compare(baseline: Sequence[float], other: Sequence[float]) -> Comparison:
    """Times of the same rounds, in seconds. Raises ValueError for different numbers of rounds, or none."""
    if len(baseline) != len(other) or not baseline:
        raise ValueError(f"baseline and other: must be times of the same rounds, got {len(baseline)} and {len(other)}")
    ratios = sorted(b / a for a, b in zip(baseline, other, strict=True))
    place, ratio = interval_place(len(ratios), CONFIDENCE), float(np.median(ratios))
    if place is None:
        return Comparison(ratio, ratios[0], ratios[-1], None)
    low, high = ratios[place], ratios[-1 - place]
    outside = low > 1 or high < 1
    return Comparison(ratio, low, high, outside and abs(math.log(ratio)) > math.log1p(LEAST_DIFFERENCE))


def interval_place(count: int, confidence: float) -> int | None:
    """The k with which (sorted[k], sorted[-1 - k]) covers the median with at least `confidence`; None: no k does."""
    missed, place = 0.0, None
    for k in range(count // 2):
        missed += 2 * math.comb(count, k) / 2**count  # P(at most k values below the median), both sides
        if missed > 1 - confidence:
            break
        place = k
    return place
