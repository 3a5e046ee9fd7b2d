"""The kernel backends of InfoNCE, "cuda" and "emulated" (see `Backend`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import _checks, _first_use, _native
from ..batch import Batch, Gradients, Wanted
from ..torch_backend import passes as torch_passes
from . import workspace
from .launch import Kernels, aligned_negatives
from .passes import Passes
from .score_block import LN2

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class KernelInfoNCE:
    """InfoNCE by the kernels of one compiled module."""

    def __init__(self, backend: str) -> None:
        self._backend = backend

    def unsupported(self, queries: Tensor, dims: Sequence[int]) -> Exception | None:
        """Why the kernels do not support these inputs; None if they do."""
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
        reason = _native.gpu_unsupported(queries.device.index) if device == "cuda" else None
        if reason is None:
            reason = _first_use.fault(
                "info_nce", self._backend, queries.device, queries.dtype, None, torch.compiler.is_compiling()
            )
        return RuntimeError(reason) if reason else None

    def sweep(self, batch: Batch, wanted: Wanted) -> tuple[Tensor, Gradients]:
        """(loss per dim, gradients): of whole rows at once if enough of them fit, else block by block."""
        passes, kept = Passes(self._backend, batch, wanted), _checks.kept_gradient_dtype(batch.queries.dtype)
        if not any(wanted):
            logsumexp, own_scores = passes.statistics()
            grads = Gradients()
        elif rows := workspace.whole_rows(passes.sizes):
            logsumexp, own_scores, grads = passes.whole_rows(rows)
        else:
            logsumexp, own_scores = passes.statistics()
            grads = passes.blocks(logsumexp, kept)
        return (logsumexp - own_scores).sum(1) * (LN2 / batch.total), grads

    def statistics(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(logsumexp, own positives' scores), [dims, N] in natural units."""
        logsumexp, own_scores = Passes(self._backend, batch, Wanted()).statistics()
        return logsumexp * LN2, own_scores * LN2

    def gradients(self, batch: Batch, logsumexp: Tensor, wanted: Wanted) -> Gradients:
        """These candidates' part of the wanted gradients, float32."""
        return Passes(self._backend, batch, wanted).blocks(logsumexp / LN2, torch.float32)

    def negative_scores(self, queries: Tensor, negatives: Tensor) -> Tensor:
        """cos(query, each of its own hard negatives): [N, K] from [N, D] and [N, K, D]."""
        if queries.shape[1] % 16 or not negatives.numel():
            return torch_passes.negative_scores(queries, negatives)
        kernels = Kernels(self._backend, [queries.shape[1]], queries.device, None)
        vectors = kernels.vectors(queries, None)
        return kernels.private_scores(vectors, aligned_negatives(negatives), None).scores[0]


@torch.compiler.assume_constant_result
def _limits(backend: str) -> tuple[int, int]:
    module = _native.module(backend)
    return module.max_features, module.max_prefixes
