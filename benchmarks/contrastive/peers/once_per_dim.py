"""InfoNCE around a library's cross-entropy: normalised prefixes, one call for each dim."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.contrastive.cases import GradientStep, Inputs, Loss, all_candidates, with_autograd
from benchmarks.suite import NotRun

CrossEntropy = Callable[[Tensor, Tensor, Tensor], Tensor]  # queries [N, d], candidates [M, d], labels [N] -> mean


def loss_once_per_dim(dims: Sequence[int], cross_entropy: CrossEntropy) -> Loss:
    def loss(queries: Tensor, *others: Tensor) -> Tensor:
        candidates, labels = all_candidates(*others), torch.arange(len(queries), device=queries.device)
        prefixes = ((normalize(x[:, :dim], dim=1) for x in (queries, candidates)) for dim in dims)
        return torch.stack([cross_entropy(q, c, labels) for q, c in prefixes]).sum()

    return loss


def once_per_dim(inputs: Inputs, dims: Sequence[int], cross_entropy: CrossEntropy) -> GradientStep:
    return with_autograd(inputs, loss_once_per_dim(dims, cross_entropy))


def needs_a_gpu(inputs: Inputs) -> None:
    if inputs[0].device.type != "cuda":
        raise NotRun("has only CUDA kernels")
