"""Sampling rows: every row once per pass, shares, and the same rows after a resume."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.sampling import MixtureSampler, ShuffledSampler, WeightedRoundRobin


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 40), counts=st.lists(st.integers(0, 30), max_size=8))
def test_each_pass_has_every_row_once(rows: int, counts: list[int]) -> None:
    sampler = ShuffledSampler(range(rows), (1, 2))
    drawn = np.concatenate([np.empty(0, int), *(sampler.take(c) for c in counts)])
    assert len(drawn) == sum(counts)
    for start in range(0, len(drawn) - rows + 1, rows):
        assert sorted(drawn[start : start + rows]) == list(range(rows))


@settings(max_examples=20, deadline=None)
@given(before=st.integers(0, 7), seed=st.integers(0, 99))
def test_state_continues_the_same_sequence(before: int, seed: int) -> None:
    def make() -> MixtureSampler:
        groups = {"a": np.arange(10), "b": np.arange(10, 40), "never": np.arange(40, 50)}
        return MixtureSampler(groups, {"a": 0.3, "b": 0.7}, (seed,))

    whole, first, second = make(), make(), make()
    expected = [whole.take(5).tolist() for _ in range(before + 4)]
    got = [first.take(5).tolist() for _ in range(before)]
    second.load_state(first.state())
    got += [second.take(5).tolist() for _ in range(4)]
    assert got == expected
    assert all(row < 40 for rows in got for row in rows)


def test_groups_come_by_their_shares() -> None:
    sampler = MixtureSampler({"a": np.arange(100), "b": np.arange(100, 200)}, {"a": 1, "b": 3}, (0,))
    drawn = np.concatenate([sampler.take(64) for _ in range(100)])
    assert abs((drawn >= 100).mean() - 0.75) < 0.03


@settings(max_examples=30, deadline=None)
@given(weights=st.lists(st.floats(0.1, 10), min_size=1, max_size=5), steps=st.integers(1, 200))
def test_turns_stay_within_one_of_their_share(weights: list[float], steps: int) -> None:
    turns = WeightedRoundRobin(weights)
    for _ in range(steps):
        turns.next()
    assert sum(turns.taken) == steps
    for taken, weight in zip(turns.taken, weights, strict=True):
        assert abs(taken - steps * weight / sum(weights)) <= len(weights) - 1 + 1e-9  # shares are rounded


def test_no_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 rows"):
        ShuffledSampler(range(0), (0,))
    with pytest.raises(ValueError, match=r"none of the groups \['xx'\]"):
        MixtureSampler({"xx": np.arange(3)}, {"en": 1.0}, (0,))
    with pytest.raises(ValueError, match="no source"):
        WeightedRoundRobin([])
