"""Inf-CL 1.2.1 (Triton), its form for one GPU: nothing N x M in memory, the scores computed again for each gradient.

It computes in float32, with TF32 GEMMs, and converts other inputs itself. With an N above 64 that is not a multiple of
64 it reads past the end of a vector: gradients of the candidates can be NaN. Compiled for sm_80 and sm_90, not yet run
on a GPU.
"""

from collections.abc import Sequence

from torch import Tensor

from benchmarks.contrastive.cases import TEMPERATURE, ContrastiveImplementation, GradientStep, Inputs
from benchmarks.contrastive.peers.once_per_dim import needs_a_gpu, once_per_dim
from benchmarks.suite import NotRun

WIDTHS = (256, 128, 64, 32, 16)  # of the "heads" that it splits a row into


def _inf_cl(inputs: Inputs, dims: Sequence[int]) -> GradientStep:
    from inf_cl import cal_flash_loss

    needs_a_gpu(inputs)
    if any(dim % WIDTHS[-1] for dim in dims):
        raise NotRun(f"supports only dims that are multiples of {WIDTHS[-1]}")

    def cross_entropy(queries: Tensor, candidates: Tensor, labels: Tensor) -> Tensor:
        width = next(width for width in WIDTHS if queries.shape[1] % width == 0)
        return cal_flash_loss(queries, candidates, labels, 1 / TEMPERATURE, width).mean()

    return once_per_dim(inputs, dims, cross_entropy)


ABOUT = "Inf-CL for each dim, in float32 (TF32), including the conversion"
IMPLEMENTATIONS = (ContrastiveImplementation("inf_cl", "rival", ABOUT, _inf_cl, prefixes=3),)
