"""Liger-Kernel's fused linear cross-entropy, and its newer one with a temperature; written against 0.8.5.

The first goes by chunks of rows, with as many scores in a chunk as the queries have elements, GEMMs by cuBLAS and the
softmax in Triton, and computes the gradients with the loss. The candidates' gradients are summed in the dtype of the
inputs, once for each chunk: by default 512 times at N = 16,384, M = 131,072 and d = 256, and in bfloat16 the negatives'
are off by 9 %, emulated in torch with these inputs. The second computes the scores again for the gradients. Not yet run
on a GPU.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.contrastive.cases import TEMPERATURE, Build, ContrastiveImplementation, GradientStep, Inputs
from benchmarks.contrastive.peers.once_per_dim import needs_a_gpu, once_per_dim

SCORES = 2**28  # bytes; the default size of our own workspace


def _fused_linear(*, tuned: bool) -> Build:
    def build(inputs: Inputs, dims: Sequence[int]) -> GradientStep:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        needs_a_gpu(inputs)

        def cross_entropy(queries: Tensor, candidates: Tensor, labels: Tensor) -> Tensor:
            options: dict[str, Any] = {}
            if tuned:
                options = {"accum_dtype": torch.float32, "chunk_mem_const": max(1, SCORES // queries.nbytes)}
            return liger_fused_linear_cross_entropy(queries / TEMPERATURE, candidates, labels, **options)

        return once_per_dim(inputs, dims, cross_entropy)

    return build


def _fused_linear_scaled(inputs: Inputs, dims: Sequence[int]) -> GradientStep:
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction

    def cross_entropy(queries: Tensor, candidates: Tensor, labels: Tensor) -> Tensor:
        return LigerFusedLinearScaledCrossEntropyFunction.apply(queries, candidates, labels, TEMPERATURE).mean()

    return once_per_dim(inputs, dims, cross_entropy)


SCALED = "Liger-Kernel's fused linear scaled cross-entropy for each dim: CuTe kernels on Hopper, torch elsewhere"
IMPLEMENTATIONS = tuple(
    ContrastiveImplementation(name, "rival", about, build, prefixes=prefixes)
    for name, about, build, prefixes in (
        (
            "liger",
            "Liger-Kernel's fused linear cross-entropy for each dim, default options",
            _fused_linear(tuned=False),
            1,
        ),
        ("liger_tuned", "the same with 256 MiB of scores at a time and float32 sums", _fused_linear(tuned=True), 2),
        ("liger_scaled", SCALED, _fused_linear_scaled, 1),
    )
)
