"""Cut cross-entropy (Triton): nothing N x M in memory, the scores computed again for the gradients.

As it comes it leaves out blocks of scores that have hardly any gradient, and adds gradients up in the dtype of the
inputs, the queries' M / 128 times. In bfloat16 that is off by 8 % at M = 32,768 and by 18 % at 131,072, emulated in
torch with these inputs at d = 256. Its exact form does neither. By the sources of github.com/apple/ml-cross-entropy at
25.6.4, and of the older 25.1.1 of the package index, whose exact form can only leave nothing out. Compiled for sm_80
and sm_90, not yet run on a GPU.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from benchmarks.contrastive.implementation import TEMPERATURE, Build, ContrastiveImplementation, Inputs, Work
from benchmarks.contrastive.peers.once_per_dim import needs_a_gpu, once_per_dim


def _build(*, exact: bool) -> Build:
    def build(inputs: Inputs, dims: Sequence[int]) -> Work:
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


IMPLEMENTATIONS = (
    ContrastiveImplementation(
        name="cut_cross_entropy",
        role="rival",
        about="Cut cross-entropy for each dim, as it comes",
        build=_build(exact=False),
        prefixes=1,
    ),
    ContrastiveImplementation(
        name="cut_cross_entropy_exact",
        role="rival",
        about="the same, its exact form: no gradient left out, float32 sums",
        build=_build(exact=True),
        prefixes=2,
    ),
)
