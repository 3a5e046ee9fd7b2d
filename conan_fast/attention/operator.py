"""Soft-masked attention, padded and packed: the public functions and their argument checks.

weights = softmax_j(scale q_i.k_j + log M_ij), M the soft mask of `soft_mask.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _backends, _checks
from .autograd import attention
from .ops import KERNELS
from .settings import Arguments
from .soft_mask import SATURATIONS


def soft_mask_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: float | Tensor,
    *,
    saturation: str = "key",
    scale: float | None = None,
    deterministic: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Soft-masked attention over a batch of sequences of one length (section 3.2, eq. 3-4).

    q: [B, L, Hq, D]; k, v: [B, L, Hkv, D], Hq a multiple of Hkv (each K/V head serves Hq / Hkv query heads); bfloat16,
        float16, float32 or float64, one dtype and device. Under autocast they are cast to its dtype, as in SDPA.
    alpha: float in [0, 1] or 0-dim tensor (no gradient flows to it; on a GPU its value is not read on the host).
    saturation: "key" | "query" | "uniform", see `soft_mask.py`. scale: default 1 / sqrt(D).
    deterministic: gradients equal to the bit from run to run (the torch backend always is).
    Returns [B, L, Hq, D] in q's dtype. First derivatives only.
    Raises ValueError / TypeError naming the argument; RuntimeError for a backend that is not built.
    """
    return _attend(q, k, v, Arguments(None, 0, alpha, saturation, scale, deterministic, backend))


def soft_mask_attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    alpha: float | Tensor,
    *,
    saturation: str = "key",
    scale: float | None = None,
    deterministic: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Soft-masked attention over a packed batch; each sequence sees only itself, l is its own length.

    q: [T, Hq, D]; k, v: [T, Hkv, D]; the other arguments as in `soft_mask_attention`.
    cu_seqlens: int32 [S + 1] on q's device, from 0 to T, never falling: sequence s owns the rows cu_seqlens[s] up to
        cu_seqlens[s + 1]; empty sequences are allowed. max_seqlen: at least the longest length.
    Returns [T, Hq, D]. The torch backend reads cu_seqlens on the host, which makes a GPU wait once per pass.
    """
    _checks.tensor("cu_seqlens", cu_seqlens, "S + 1")
    if isinstance(max_seqlen, bool) or not isinstance(max_seqlen, (int, torch.SymInt)):
        raise TypeError(f"max_seqlen must be an int, got {type(max_seqlen).__name__}")
    return _attend(q, k, v, Arguments(cu_seqlens, max_seqlen, alpha, saturation, scale, deterministic, backend))


def _attend(q: Tensor, k: Tensor, v: Tensor, arguments: Arguments) -> Tensor:
    cu_seqlens, alpha = arguments.cu_seqlens, arguments.alpha
    packed = cu_seqlens is not None
    for name, value, heads in (("q", q, "Hq"), ("k", k, "Hkv"), ("v", v, "Hkv")):
        _checks.tensor(name, value, f"T, {heads}, D" if packed else f"B, L, {heads}, D")
    q, k, v = _autocast(q), _autocast(k), _autocast(v)
    _check_shapes(q, k, v)
    if cu_seqlens is not None:
        _check_cu_seqlens(cu_seqlens, q)
    _checks.alpha(alpha, q.device)
    _checks.one_of("saturation", arguments.saturation, SATURATIONS)
    _checks.positive_scale(arguments.scale)
    chosen = _backends.choose(arguments.backend, q.device, lambda name: KERNELS[name].unsupported(q))
    alpha_float, alpha_tensor = (0.0, alpha) if isinstance(alpha, Tensor) else (float(alpha), None)
    scale = q.shape[-1] ** -0.5 if arguments.scale is None else float(arguments.scale)
    settings = arguments.max_seqlen, alpha_float, arguments.saturation, scale, bool(arguments.deterministic), chosen
    return attention(q, k, v, cu_seqlens, alpha_tensor, *settings)


def _autocast(x: Tensor) -> Tensor:
    """x as torch.autocast passes it to SDPA: in the autocast dtype where autocast is on (float64 stays)."""
    device = x.device.type
    if not _has_autocast(device) or not torch.is_autocast_enabled(device):
        return x
    if not x.dtype.is_floating_point or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(device))


@torch.compiler.assume_constant_result  # torch 2.6 cannot trace the question
def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


def _check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    _checks.floating_alike(q=q, k=k, v=v)
    if k.shape != v.shape:
        raise ValueError(f"v must have the shape of k, {list(k.shape)}, got {list(v.shape)}")
    if k.shape[:-2] != q.shape[:-2]:
        raise ValueError(f"k must have the tokens of q, {list(q.shape[:-2])}, got {list(k.shape[:-2])}")
    if k.shape[-1] != q.shape[-1] or q.shape[-1] == 0:
        raise ValueError(f"k must have the head_dim of q (at least 1), {q.shape[-1]}, got {k.shape[-1]}")
    heads, kv_heads = q.shape[-2], k.shape[-2]
    if heads == 0 or kv_heads == 0 or heads % kv_heads != 0:
        raise ValueError(f"q must have a multiple of the {kv_heads} heads of k and v, got {heads} heads")


def _check_cu_seqlens(cu_seqlens: Tensor, q: Tensor) -> None:
    if cu_seqlens.dtype != torch.int32:
        raise TypeError(f"cu_seqlens must be int32, got {cu_seqlens.dtype}")
    if cu_seqlens.device != q.device:
        raise ValueError(f"cu_seqlens must be on the device of q, {q.device}, got {cu_seqlens.device}")
    if cu_seqlens.shape[0] == 0:
        raise ValueError("cu_seqlens must have S + 1 >= 1 entries, got none")
