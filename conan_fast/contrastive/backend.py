"""What a backend of InfoNCE has to offer, and which ones there are."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from .batch import Batch, Gradients, Wanted
from .kernel_backend.backend import KernelInfoNCE
from .torch_backend import passes as torch_passes


class Backend(Protocol):
    """Computes the loss of a Batch and the wanted ones of its gradients.

    One process with all candidates needs `sweep` alone. Where a process sees the candidates part by part
    (distributed/ring.py), `statistics` of each part comes first, then `gradients` of each part.
    """

    def sweep(self, batch: Batch, wanted: Wanted) -> tuple[Tensor, Gradients]:
        """(loss per dim [dims], gradients in the dtype in which they wait for the loss's own gradient)."""

    def statistics(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(logsumexp of the scores over these candidates alone, own positives' scores): [dims, N] each.

        A score is cosine / temperature, the logarithm the natural one: -inf without candidates. An own positive's score
        is 0 where it is not among these candidates. float32, or float64 for float64 features.
        """

    def gradients(self, batch: Batch, logsumexp: Tensor, wanted: Wanted) -> Gradients:
        """What these candidates add to the gradients, where logsumexp [dims, N] is that over all candidates.

        The results of disjoint sets of candidates, the own positives in one of them, sum up to those of `sweep`. Their
        dtype is float32, or float64 for float64 features; all are on the queries' device.
        """

    def negative_scores(self, queries: Tensor, negatives: Tensor) -> Tensor:
        """cos(query, each of its own hard negatives): [N, K] from [N, D] and [N, K, D]."""


KERNELS = {name: KernelInfoNCE(name) for name in ("cuda", "emulated")}
BACKENDS: dict[str, Backend] = {"torch": torch_passes, **KERNELS}
