"""The floor as the library gives it: the three matrix products that nobody can do without."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks import timing
from benchmarks.contrastive.implementation import ContrastiveImplementation, Inputs, Work, all_candidates


def three_products(inputs: Inputs, _: Sequence[int]) -> Work:
    """scores = Q C^T, G C and G^T Q, full width, with random G, in the dtype of the inputs.

    G and the scores take at most a fourth of the free memory (CPU: 1 GiB); where N x M is more it goes by rows, and
    adding up G^T Q costs a little that is not in a product.
    """
    queries, *others = (x.detach() for x in inputs)
    candidates = all_candidates(*others)
    free = timing.free_bytes(queries.device)
    room = 2**30 if free is None else free // 4
    step = min(len(queries), max(1, room // (2 * queries.element_size() * len(candidates))))
    given = torch.randn(step, len(candidates), dtype=queries.dtype, device=queries.device)
    scores, grad_queries, grad_candidates = (torch.empty_like(x) for x in (given, queries, candidates))

    def products() -> None:
        for start in range(0, len(queries), step):
            part = queries[start : start + step]
            grad = given[: len(part)]
            torch.mm(part, candidates.T, out=scores[: len(part)])
            torch.mm(grad, candidates, out=grad_queries[start : start + step])
            grad_candidates.addmm_(grad.T, part, beta=1 if start else 0)

    return Work(products, lambda: [grad_queries, grad_candidates])


IMPLEMENTATIONS = (
    ContrastiveImplementation(
        name="three_products",
        role="floor",
        about="the three bare products, full width",
        build=three_products,
        checked=False,
    ),
)
