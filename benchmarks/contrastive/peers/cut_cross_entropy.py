"""Cut cross-entropy (Triton): nothing N x M in memory, the scores computed again for the gradients.

By default it skips blocks of scores with a very small gradient, and sums gradients in the dtype of the inputs, the
queries' M / 128 times. In bfloat16 that is off by 8 % at M = 32,768 and by 18 % at 131,072, emulated in torch with
these inputs at d = 256. Its exact form does neither. Written against the sources of github.com/apple/ml-cross-entropy
25.6.4 and of the older 25.1.1 of the package index, whose exact form only skips nothing. Compiled for sm_80 and sm_90,
not yet run on a GPU.
"""

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from benchmarks.contrastive.cases import TEMPERATURE, Build, ContrastiveImplementation, GradientStep, Inputs
from benchmarks.contrastive.peers.once_per_dim import needs_a_gpu, once_per_dim


def _build(*, exact: bool) -> Build:
    def build(inputs: Inputs, dims: Sequence[int]) -> GradientStep:
        from cut_cross_entropy import linear_cross_entropy

        needs_a_gpu(inputs)
        options: dict[str, Any] = {}
        if exact:
            older = "accum_e_fp32" not in inspect.signature(linear_cross_entropy).parameters
            options = {"filter_eps": None} if older else {"impl": "cce_exact"}

        def cross_entropy(queries: Tensor, candidates: Tensor, labels: Tensor) -> Tensor:
            return linear_cross_entropy(queries / TEMPERATURE, candidates, labels, **options)

        return once_per_dim(inputs, dims, cross_entropy)

    return build


IMPLEMENTATIONS = tuple(
    ContrastiveImplementation(name, "rival", about, _build(exact=exact), prefixes=1 + exact)
    for name, about, exact in (
        ("cut_cross_entropy", "Cut cross-entropy for each dim, default options", False),
        ("cut_cross_entropy_exact", "its exact form: no gradient skipped, float32 sums", True),
    )
)
