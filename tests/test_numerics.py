"""The exponential of the torch backends: exact, 0 for negligible weights, and NaN and inf pass through."""

import pytest
import torch

from conan_fast import info_nce
from conan_fast._numerics import exp_, exp_factor_, logsumexp


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exp_is_exact_or_zero(dtype):
    end = 600 if dtype == torch.float64 else 60
    x = torch.linspace(-end + 0.5, 2, 101, dtype=dtype)
    assert torch.equal(exp_(x.clone()), x.exp())
    assert not exp_(torch.tensor([-end - 0.5, -2.0 * end, -1e30, -torch.inf], dtype=dtype)).any()


def test_exp_keeps_nan_and_inf():
    result = exp_(torch.tensor([torch.nan, torch.inf, 0.0]))
    assert result[0].isnan() and result[1].isinf() and result[2] == 1


def test_logsumexp_of_far_apart_scores():
    scores = torch.tensor([[-1e4, -1e4, -2e4], [5.0, -100.0, 5.0], [-torch.inf, 3.0, -torch.inf]], dtype=torch.float64)
    torch.testing.assert_close(logsumexp(scores)[0], scores.logsumexp(1))


def test_gradients_hold_no_denormal_number_at_temperature_001():
    """Cosines of 1 for positives and 0 for others make exact weights of e^-100, a denormal number in float32."""
    generator = torch.Generator().manual_seed(0)
    positives = torch.randn(32, 512, generator=generator)
    queries = torch.eye(32, 512).requires_grad_()
    positives = torch.eye(32, 512) + 0.001 * positives
    info_nce(queries, positives, temperature=0.01).loss.backward()
    small = queries.grad[queries.grad != 0].abs()
    assert not (small < torch.finfo(torch.float32).tiny).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_product_of_an_exponential_and_a_factor_is_denormal(dtype):
    logarithms = torch.linspace(-700, 0, 1401, dtype=dtype)
    exponentials, factors = exp_(logarithms.clone()), exp_factor_(logarithms.clone())
    products = exponentials[:, None] * factors
    assert (products == 0).logical_or(products >= torch.finfo(dtype).tiny).all()
    kept = factors > 0
    assert kept.sum() > 50 and factors.isfinite().all()
    torch.testing.assert_close(factors[kept], logarithms[kept].exp())
