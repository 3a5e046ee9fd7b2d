"""InfoNCE as its users write it around a library's cross-entropy: normalised prefixes, one call for each dim."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.contrastive.implementation import Inputs, Work, all_candidates, with_autograd
from benchmarks.peer import NotRun

CrossEntropy = Callable[[Tensor, Tensor, Tensor], Tensor]  # of queries [N, d], candidates [M, d] and labels [N]; a mean


def once_per_dim(inputs: Inputs, dims: Sequence[int], cross_entropy: CrossEntropy) -> Work:
    labels = torch.arange(len(inputs[0]), device=inputs[0].device)

    def loss(queries: Tensor, *others: Tensor) -> Tensor:
        candidates = all_candidates(*others)
        prefixes = ((normalize(x[:, :dim], dim=1) for x in (queries, candidates)) for dim in dims)
        return torch.stack([cross_entropy(q, c, labels) for q, c in prefixes]).sum()

    return with_autograd(inputs, loss)


def needs_a_gpu(inputs: Inputs) -> None:
    if inputs[0].device.type != "cuda":
        raise NotRun("has only CUDA kernels")
