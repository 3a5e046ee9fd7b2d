"""The schedule alpha(t) and the mask M against the formulas of the paper's section 3.2 and appendix C."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conan_fast import SoftMaskSchedule, soft_mask

SATURATIONS = ("key", "query", "uniform")


@pytest.mark.parametrize(
    ("curve", "values"),
    [
        ("linear", [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("accelerating", [0.0, 0.0625, 0.25, 0.5625, 1.0]),
        ("decelerating", [0.0, 0.4375, 0.75, 0.9375, 1.0]),
    ],
)
def test_schedule_follows_its_formula(curve, values):
    schedule = SoftMaskSchedule(8, curve)
    assert [schedule(step) for step in (0, 2, 4, 6, 8)] == values
    assert schedule(9) == schedule(10**9) == 1.0


@settings(deadline=None, max_examples=30)
@given(total=st.integers(1, 1000), curve=st.sampled_from(["linear", "accelerating", "decelerating"]))
def test_schedule_rises_from_0_to_1(total, curve):
    values = [SoftMaskSchedule(total, curve)(step) for step in range(total + 3)]
    assert values[0] == 0.0 and values[total] == 1.0
    assert values == sorted(values)


def test_schedule_of_no_steps_is_bidirectional():
    assert SoftMaskSchedule(0)(0) == 1.0


def test_schedule_errors():
    with pytest.raises(ValueError, match="total_steps"):
        SoftMaskSchedule(-1)
    with pytest.raises(ValueError, match="curve"):
        SoftMaskSchedule(3, "cubic")
    with pytest.raises(ValueError, match="step"):
        SoftMaskSchedule(3)(-1)


def test_mask_written_out():
    # length 4, alpha 0.5: alpha l = 2; by key 2/j, by query 2/i, indices from 1
    assert soft_mask(4, 0.5).tolist() == [
        [1, 1, pytest.approx(2 / 3), 0.5],
        [1, 1, pytest.approx(2 / 3), 0.5],
        [1, 1, 1, 0.5],
        [1, 1, 1, 1],
    ]
    third = pytest.approx(2 / 3)
    assert soft_mask(4, 0.5, "query").tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, third], [1, 1, 1, 1]]
    assert soft_mask(3, 0.5, "uniform").tolist() == [[1, 0.5, 0.5], [1, 1, 0.5], [1, 1, 1]]


@settings(deadline=None, max_examples=20)
@given(length=st.integers(0, 40), saturation=st.sampled_from(SATURATIONS))
def test_mask_ends(length, saturation):
    assert torch.equal(soft_mask(length, 0.0, saturation), torch.ones(length, length).tril())
    assert torch.equal(soft_mask(length, 1.0, saturation), torch.ones(length, length))
    assert soft_mask(length, torch.tensor(0.5), saturation).dtype == torch.float32


def test_rank_falls_from_full_to_one_as_alpha_rises():
    ranks = [int(torch.linalg.matrix_rank(soft_mask(16, step / 16).double())) for step in range(17)]
    assert ranks[0] == 16 and ranks[-1] == 1
    assert ranks == sorted(ranks, reverse=True)


def test_mask_errors():
    with pytest.raises(ValueError, match="length"):
        soft_mask(-1, 0.5)
    with pytest.raises(ValueError, match="saturation"):
        soft_mask(3, 0.5, "rows")
    for alpha in (-0.1, 1.1, float("nan"), torch.tensor(2.0)):
        with pytest.raises(ValueError, match="alpha"):
            soft_mask(3, alpha)
    with pytest.raises(TypeError, match="alpha"):
        soft_mask(3, "0.5")
