"""torch's chunked linear cross-entropy (2.13 and newer): the scores of some rows at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.contrastive.cases import TEMPERATURE, ContrastiveImplementation, GradientStep, Inputs
from benchmarks.contrastive.peers.once_per_dim import once_per_dim
from benchmarks.suite import NotRun


def _chunked(inputs: Inputs, dims: Sequence[int]) -> GradientStep:
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise NotRun(f"torch {torch.__version__} does not have it")
    linear_cross_entropy, options = torch.nn.functional.linear_cross_entropy, torch.nn.LinearCrossEntropyOptions()

    def cross_entropy(queries: Tensor, candidates: Tensor, labels: Tensor) -> Tensor:
        return linear_cross_entropy(queries / TEMPERATURE, candidates, labels, options=options)

    return once_per_dim(inputs, dims, cross_entropy)


ABOUT = "torch's linear_cross_entropy for each dim, in chunks of its choice"
IMPLEMENTATIONS = (ContrastiveImplementation("torch_chunked", "rival", ABOUT, _chunked, squares=1, prefixes=2),)
