"""InfoNCE with seven Matryoshka dims: one pass against once per dim. Run: pytest benchmarks/test_contrastive.py

Work: three products of 2 N M D FLOP (scores and two gradients) for all dims together; once per dim it is three times
the sum of the dims instead of the largest, here 3.75 times as much.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from conan_fast import info_nce

PAIRS, NEGATIVES, DIM = 1024, 7, 1024
DIMS = [128, 256, 384, 512, 640, 896, 1024]


def once_per_dim(queries: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """The usual way: normalise the prefixes, multiply, cross-entropy, for each dim."""
    candidates = torch.cat([positives, negatives.flatten(0, 1)])
    labels = torch.arange(len(queries))
    loss = queries.new_zeros(())
    for dim in DIMS:
        q = torch.nn.functional.normalize(queries[:, :dim], dim=1)
        c = torch.nn.functional.normalize(candidates[:, :dim], dim=1)
        loss = loss + torch.nn.functional.cross_entropy(q @ c.T / 0.05, labels)
    return loss


def one_pass(queries: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    return info_nce(queries, positives, negatives, dims=DIMS).loss


@pytest.mark.benchmark(group=f"InfoNCE forward + backward, N={PAIRS}, K={NEGATIVES}, D={DIM}, 7 dims")
@pytest.mark.parametrize("loss", [once_per_dim, one_pass], ids=lambda f: f.__name__)
def test_info_nce(benchmark: Callable[..., object], loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    shapes = [(PAIRS, DIM), (PAIRS, DIM), (PAIRS, NEGATIVES, DIM)]
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]

    def step() -> list[Tensor]:
        return list(torch.autograd.grad(loss(*inputs), inputs))

    expected = torch.autograd.grad(once_per_dim(*inputs), inputs)
    for got, want in zip(step(), expected, strict=True):  # a wrong result has no time
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-6)
    benchmark(step)
