"""The kernel backends of InfoNCE, "cuda" and "emulated": the functions of `_info_nce_torch.py` by the kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _checks, _native
from ..batch import Batch
from ..torch_backend import passes as torch_passes
from . import workspace
from .launch import LN2, Kernels, aligned_negatives
from .passes import Work

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class NativeInfoNCE:
    """The functions of `_info_nce_torch.py` by the kernels of one compiled module."""

    def __init__(self, backend: str) -> None:
        self._backend = backend

    def refusal(self, queries: Tensor, dims: Sequence[int]) -> Exception | None:
        """What is wrong with these inputs for the kernels; None if nothing is."""
        device = "cuda" if self._backend == "cuda" else "cpu"
        max_features, max_prefixes = _limits(self._backend)
        if queries.device.type != device:
            return ValueError(
                f"queries must be on a {device} device for backend={self._backend!r}, got {queries.device}"
            )
        if queries.dtype not in DTYPES:
            return TypeError(f"queries must be bfloat16, float16 or float32 for the kernels, got {queries.dtype}")
        if queries.shape[1] > max_features:
            return ValueError(
                f"queries must have at most {max_features} columns for the kernels, got {queries.shape[1]}"
            )
        if any(dim % 16 for dim in dims) or len(dims) > max_prefixes:
            return ValueError(
                f"dims must be multiples of 16, at most {max_prefixes} of them, for the kernels, got {list(dims)}"
            )
        reason = _native.gpu_refusal(queries.device.index) if device == "cuda" else None
        return RuntimeError(reason) if reason else None

    def sweep(self, batch: Batch, with_gradients: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(loss per dim, gradients of queries, positives, shared, private and temperature); see Batch."""
        work, kept = Work(self._backend, batch), _checks.kept_gradient_dtype(batch.queries.dtype)
        if not with_gradients:
            logsumexp, own = work.statistics()
            grads = [work.kernels.empty(0, dtype=kept) for _ in range(4)]
            grads.append(torch.zeros_like(batch.temperature))
        elif rows := workspace.whole_rows(work.problem):
            logsumexp, own, grads = work.whole_rows(rows)
        else:
            logsumexp, own = work.statistics()
            grads = work.blocks(logsumexp, kept)
        losses = (logsumexp - own).sum(1) * (LN2 / batch.total)
        return losses, grads[0], grads[1], grads[2], grads[3], grads[4]

    def statistics(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(logsumexp over these candidates, own positives' scores), [dims, N] in natural units; see Batch."""
        logsumexp, own = Work(self._backend, batch).statistics()
        return logsumexp * LN2, own * LN2

    def gradients(self, batch: Batch, logsumexp: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """These candidates' part of the gradients, float32, where logsumexp [dims, N] is that over all candidates."""
        grads = Work(self._backend, batch).blocks(logsumexp / LN2, torch.float32)
        return grads[0], grads[1], grads[2], grads[3], grads[4]

    def negative_scores(self, queries: Tensor, negatives: Tensor) -> Tensor:
        """cos(query, each of its own hard negatives): [N, K] from [N, D] and [N, K, D]."""
        if queries.shape[1] % 16 or not negatives.numel():
            return torch_passes.negative_scores(queries, negatives)
        kernels = Kernels(self._backend, [queries.shape[1]], queries.device, None)
        vectors = kernels.vectors(queries, None)
        scores, _ = kernels.private_scores(vectors, aligned_negatives(negatives), None)
        return scores[0]


@torch.compiler.assume_constant_result
def _limits(backend: str) -> tuple[int, int]:
    module = _native.module(backend)
    return module.max_features, module.max_prefixes
