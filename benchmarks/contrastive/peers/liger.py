"""Liger-Kernel's fused linear cross-entropy, and its newer one with a temperature; by the sources of 0.8.5.

The first goes by rows, as many scores at a time as the queries have numbers, with products by cuBLAS and the softmax
in Triton, and computes the gradients with the loss. The candidates' are added up in the dtype of the inputs, once for
each part: as it comes that is 512 times at N = 16,384, M = 131,072 and d = 256, and in bfloat16 the negatives' are off
by 9 %, emulated in torch with these inputs. The second computes the scores again for the gradients. Not yet run on a
GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.contrastive.implementation import TEMPERATURE, Build, ContrastiveImplementation, Inputs, Work
from benchmarks.contrastive.peers.once_per_dim import needs_a_gpu, once_per_dim

SCORES = 2**28  # bytes; what our own workspace takes by default


def _fused_linear(*, tuned: bool) -> Build:
    def build(inputs: Inputs, dims: Sequence[int]) -> Work:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        needs_a_gpu(inputs)

        def cross_entropy(queries: Tensor, candidates: Tensor, labels: Tensor) -> Tensor:
            options: dict[str, Any] = {}
            if tuned:
                options = {"accum_dtype": torch.float32, "chunk_mem_const": max(1, SCORES // queries.nbytes)}
            return liger_fused_linear_cross_entropy(queries / TEMPERATURE, candidates, labels, **options)

        return once_per_dim(inputs, dims, cross_entropy)

    return build


def _fused_linear_scaled(inputs: Inputs, dims: Sequence[int]) -> Work:
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction

    def cross_entropy(queries: Tensor, candidates: Tensor, labels: Tensor) -> Tensor:
        return LigerFusedLinearScaledCrossEntropyFunction.apply(queries, candidates, labels, TEMPERATURE).mean()

    return once_per_dim(inputs, dims, cross_entropy)


IMPLEMENTATIONS = (
    ContrastiveImplementation(
        name="liger",
        role="rival",
        about="Liger-Kernel's fused linear cross-entropy for each dim, as it comes",
        build=_fused_linear(tuned=False),
        prefixes=1,
    ),
    ContrastiveImplementation(
        name="liger_tuned",
        role="rival",
        about="the same with 256 MiB of scores at a time and float32 sums",
        build=_fused_linear(tuned=True),
        prefixes=2,
    ),
    ContrastiveImplementation(
        name="liger_scaled",
        role="rival",
        about="Liger-Kernel's fused linear scaled cross-entropy for each dim: CuTe kernels on Hopper, torch elsewhere",
        build=_fused_linear_scaled,
        prefixes=1,
    ),
)
