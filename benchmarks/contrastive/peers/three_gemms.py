"""The three GEMMs that every implementation needs, by the library, without the loss."""

from collections.abc import Sequence

import torch

from benchmarks import timing
from benchmarks.contrastive.cases import GradientStep, InfoNCEImplementation, Inputs, all_candidates


def three_gemms(inputs: Inputs, _: Sequence[int]) -> GradientStep:
    """scores = Q C^T, G C and G^T Q, full width, with random G, in the dtype of the inputs.

    G and the scores use at most a fourth of the free memory (CPU: 1 GiB). If N x M is larger it goes by rows, and the
    sum of G^T Q costs a little outside the GEMMs.
    """
    queries, *others = (x.detach() for x in inputs)
    candidates = all_candidates(*others)
    free, most = timing.free_bytes(queries.device), 2**30 if queries.device.type == "cpu" else 2**60
    room = min(most, 2**30 if free is None else free // 4)
    step = min(len(queries), max(1, room // (2 * queries.element_size() * len(candidates))))
    given = torch.randn(step, len(candidates), dtype=queries.dtype, device=queries.device)
    scores, grad_queries, grad_candidates = (torch.empty_like(x) for x in (given, queries, candidates))

    def run() -> None:
        for start in range(0, len(queries), step):
            part = queries[start : start + step]
            grad = given[: len(part)]
            torch.mm(part, candidates.T, out=scores[: len(part)])
            torch.mm(grad, candidates, out=grad_queries[start : start + step])
            grad_candidates.addmm_(grad.T, part, beta=1 if start else 0)

    return GradientStep(run, lambda: [grad_queries, grad_candidates])


ABOUT = "the three GEMMs alone, full width"
IMPLEMENTATIONS = (InfoNCEImplementation("three_gemms", "gemms", ABOUT, three_gemms, checked=False),)
