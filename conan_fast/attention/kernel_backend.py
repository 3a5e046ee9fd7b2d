"""The kernel backends of soft-masked attention: allocate what the kernels write, pass tensors to them, start them.

The same code serves "cuda" and "emulated" (the kernels compiled for the CPU). Nothing here waits for the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack

from .. import _checks, _first_use, _native
from .settings import Gradients, Saved, Settings
from .soft_mask import SATURATIONS

DTYPES = (torch.bfloat16, torch.float16)


class KernelAttention:
    """`forward` and `backward` as in `torch_backend.py`, by the kernels of one compiled module."""

    def __init__(self, backend: str) -> None:
        self._backend = backend

    @property
    def _module(self) -> ModuleType:
        return _native.module(self._backend)

    def unsupported(self, q: Tensor) -> Exception | None:
        """Why the kernels do not support these inputs; None if they do."""
        device = "cuda" if self._backend == "cuda" else "cpu"
        if q.device.type != device:
            return ValueError(f"q must be on a {device} device for backend={self._backend!r}, got {q.device}")
        if q.dtype not in DTYPES:
            return TypeError(f"q must be bfloat16 or float16 for the kernels, got {q.dtype}")
        if q.shape[-1] not in _head_dims(self._backend):
            supported = ", ".join(map(str, _head_dims(self._backend)))
            return ValueError(f"q must have a head_dim out of {supported} for the kernels, got {q.shape[-1]}")
        reason = _native.gpu_unsupported(q.device.index) if device == "cuda" else None
        if reason is None:
            dims = _head_dims(self._backend)
            head_dim = dims[dims.index(q.shape[-1])]  # an int under torch.compile with dynamic shapes, too
            reason = _first_use.fault(
                "soft_mask_attention", self._backend, q.device, q.dtype, head_dim, torch.compiler.is_compiling()
            )
        return RuntimeError(reason) if reason else None

    def forward(self, q: Tensor, k: Tensor, v: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
        """(out like q, natural logsumexp of each row [..., heads, tokens], float32)."""
        q, k, v = _aligned(q), _aligned(k), _aligned(v)
        shared, schedule = self._arguments(q, settings)
        out = _empty_like(q)
        logsumexp = torch.empty(
            (*q.shape[:-3], q.shape[-2], q.shape[-3]), dtype=torch.float32, device=q.device
        )  # [..., heads, tokens]
        self._module.attention_forward(
            to_dlpack(q), to_dlpack(k), to_dlpack(v), *shared, to_dlpack(out), to_dlpack(logsumexp),
            _capsule(schedule), _stream(q.device),
        )  # fmt: skip
        return out, logsumexp

    def backward(self, grad_out: Tensor, saved: Saved, needed: Sequence[bool], settings: Settings) -> Gradients:
        """(dq, dk, dv), None for those that are not needed.

        dk and dv come from one kernel, which also adds to dq by atomic additions. A kernel of its own makes dq where it
        is needed alone or deterministic.
        """
        grad_out, q, k, v, out = (_aligned(x) for x in (grad_out, *saved[:4]))
        logsumexp = saved.logsumexp.contiguous()
        shared, schedule = self._arguments(q, settings)
        need_dq, need_dk, need_dv = needed
        ordered = settings.deterministic or torch.are_deterministic_algorithms_enabled()
        dq = _empty_like(q) if need_dq else None
        dk, dv = (_empty_like(k), _empty_like(v)) if need_dk or need_dv else (None, None)
        delta = torch.empty(logsumexp.shape, dtype=torch.float32, device=q.device)
        dq_sum = None
        if need_dq and dk is not None and not ordered:
            dq_sum = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
        self._module.attention_backward(
            to_dlpack(grad_out), to_dlpack(q), to_dlpack(k), to_dlpack(v), to_dlpack(out), to_dlpack(logsumexp),
            *shared, _capsule(None if dq_sum is not None else dq), _capsule(dk), _capsule(dv), _capsule(dq_sum),
            to_dlpack(delta), _capsule(schedule), _stream(q.device),
        )  # fmt: skip
        if dq_sum is not None:
            torch.mul(dq_sum, settings.scale, out=dq)
        return dq, dk if need_dk else None, dv if need_dv else None

    def _arguments(self, q: Tensor, settings: Settings) -> tuple[list[object], Tensor | None]:
        """What the kernels of both passes take: cu_seqlens, max_seqlen, alpha (twice), saturation, scale; and, for a
        packed batch, the scratch memory in which they list the tiles of all sequences.
        """
        cu_seqlens, schedule = settings.cu_seqlens, None
        if cu_seqlens is not None:
            if cu_seqlens.device.type == "cpu":  # on a GPU the kernels clamp the offsets
                _checks.sequences(cu_seqlens.tolist(), settings.max_seqlen, q.shape[0])
            cu_seqlens = cu_seqlens.contiguous()
            slots = self._module.schedule_slots(q.shape[0], len(cu_seqlens) - 1)
            schedule = torch.empty((slots, 4), dtype=torch.int32, device=q.device)
        alpha, alpha_tensor = _alpha(settings.alpha, q.device)
        code = SATURATIONS.index(settings.saturation)
        arguments = [_capsule(cu_seqlens), settings.max_seqlen, alpha, _capsule(alpha_tensor), code, settings.scale]
        return arguments, schedule


@torch.compiler.assume_constant_result
def _head_dims(backend: str) -> list[int]:
    dims: list[int] = _native.module(backend).head_dims
    return dims


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _capsule(x: Tensor | None) -> object:
    return None if x is None else to_dlpack(x)


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _aligned(x: Tensor) -> Tensor:
    """x, or a copy where its rows are not contiguous and aligned to 16 bytes."""
    *outer, inner = x.stride()
    if inner == 1 and all(stride % 8 == 0 for stride in outer) and x.data_ptr() % 16 == 0:
        return x
    return x.clone(memory_format=torch.contiguous_format)


def _alpha(alpha: float | Tensor, device: torch.device) -> tuple[float, Tensor | None]:
    """A number where the value is on the host of a GPU, else a float32 tensor on the device, which the kernels read."""
    if not isinstance(alpha, Tensor):
        return alpha, None
    if alpha.device.type == "cpu":
        _checks.alpha_value(alpha.item())
    if alpha.device != device:
        return alpha.item(), None
    return 0.0, alpha.to(torch.float32)
