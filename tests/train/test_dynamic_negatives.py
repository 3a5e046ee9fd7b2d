"""Eq. 6 as the paper states it, and the bookkeeping around it."""

import numpy as np
import pytest
import torch

from train.dynamic_negatives import DynamicNegatives, ReplacementRule

POOLS = np.array([[10, 11, 12, 13, -1], [20, 21, 22, 23, 24]])
ROW = np.array([0])


def scores(*values: float) -> torch.Tensor:
    return torch.tensor([values])


@pytest.mark.parametrize(
    ("first", "now", "replaced"),
    [
        (0.39, 0.39, True),  # S0 < 0.4
        (0.40, 0.40, False),
        (0.80, 0.66, True),  # 1.2 * 0.66 < 0.8 and 0.66 < 0.7
        (0.80, 0.67, False),  # 1.2 * 0.67 > 0.8
        (0.90, 0.71, False),  # easy by the ratio, but still 0.7 or more
        (0.90, 0.95, False),
    ],
)
def test_rule_is_equation_6(first: float, now: float, replaced: bool) -> None:
    rule = ReplacementRule()
    assert rule(np.array([first], np.float32), np.array([now], np.float32))[0] == replaced


def test_replacement_takes_the_next_of_the_pool_from_the_next_step_on() -> None:
    negatives = DynamicNegatives(POOLS, 2, ReplacementRule())
    assert negatives.current(ROW).tolist() == [[10, 11]]
    assert negatives.update(ROW, scores(0.9, 0.9)) == 0.0  # the first scores are recorded
    assert negatives.update(ROW, scores(0.6, 0.9)) == 0.5
    assert negatives.current(ROW).tolist() == [[12, 11]]
    assert negatives.current(np.array([1])).tolist() == [[20, 21]]  # other pairs are untouched
    # 12 is new: its first score counts, not that of its predecessor.
    assert negatives.update(ROW, scores(0.62, 0.9)) == 0.0
    # Both are easy now, and the pool has one text left: the first slot gets it, the second keeps its text.
    assert negatives.update(ROW, scores(0.5, 0.5)) == 0.5
    assert negatives.current(ROW).tolist() == [[13, 11]]


def test_used_up_pool_keeps_what_it_has() -> None:
    negatives = DynamicNegatives(POOLS[:1], 4, ReplacementRule())
    assert negatives.update(ROW, scores(0.1, 0.1, 0.1, 0.1)) == 0.0
    assert negatives.current(ROW).tolist() == [[10, 11, 12, 13]]


def test_a_pair_that_comes_twice_in_a_step_counts_once() -> None:
    negatives = DynamicNegatives(POOLS, 1, ReplacementRule())
    negatives.update(np.array([1, 1]), torch.tensor([[0.1], [0.1]]))
    assert negatives.current(np.array([1])).tolist() == [[21]]


def test_off_never_replaces() -> None:
    negatives = DynamicNegatives(POOLS, 2, None)
    negatives.update(ROW, scores(0.1, 0.1))
    assert negatives.current(ROW).tolist() == [[10, 11]]


def test_state_round_trip() -> None:
    one, two = (DynamicNegatives(POOLS, 2, ReplacementRule()) for _ in range(2))
    one.update(ROW, scores(0.3, 0.8))
    two.load_tensors(one.tensors())
    for step_scores in (scores(0.9, 0.5), scores(0.5, 0.5)):
        assert one.update(ROW, step_scores) == two.update(ROW, step_scores)
        assert one.current(ROW).tolist() == two.current(ROW).tolist()


def test_short_pool_is_an_error() -> None:
    with pytest.raises(ValueError, match="pair 0 has 4 negatives, expected at least 5"):
        DynamicNegatives(POOLS, 5, None)
