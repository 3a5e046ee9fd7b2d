"""Soft-masked attention, padded and packed: the public functions and their argument checks.

weights = softmax_j(scale q_i.k_j + log M_ij), M the soft mask of `soft_mask.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _autocast, _backends, _checks
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
    Returns [B, L, Hq, D] in q's dtype.
    Derivatives: first ones by q, k and v, by autograd and torch.func (grad, vjp, jacrev, vmap over q, k and v); only
        those that are asked for are computed. Others (create_graph=True differentiated again, jvp) raise RuntimeError.
    torch.compile: all values of alpha and scale share one graph if dynamic=True, else two.
    torch's FlopCounterMode counts the GEMMs as for SDPA without a mask: 2 forward, 5 backward (fewer for fewer
        gradients).
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
    Returns [T, Hq, D].
    The torch backend reads cu_seqlens on the host, which makes a GPU wait once per pass. The kernels do not, so they
        cannot check its values: a sequence ends at max_seqlen tokens, and rows that no sequence has (such as those past
        cu_seqlens[-1] when a CUDA graph is replayed with fewer tokens) are 0 in the output and in all gradients.
    FlopCounterMode counts the lengths in cu_seqlens, or max_seqlen for each sequence under FakeTensorMode.
    """
    _checks.tensor("cu_seqlens", cu_seqlens, "S + 1")
    if isinstance(max_seqlen, bool) or not isinstance(max_seqlen, (int, torch.SymInt)):
        raise TypeError(f"max_seqlen must be an int, got {type(max_seqlen).__name__}")
    return _attend(q, k, v, Arguments(cu_seqlens, max_seqlen, alpha, saturation, scale, deterministic, backend))


def _attend(q: Tensor, k: Tensor, v: Tensor, arguments: Arguments) -> Tensor:
    cu_seqlens, alpha = arguments.cu_seqlens, arguments.alpha
    tokens = "B, L" if cu_seqlens is None else "T"
    for name, value, heads in (("q", q, "Hq"), ("k", k, "Hkv"), ("v", v, "Hkv")):
        _checks.tensor(name, value, f"{tokens}, {heads}, D")
    q, k, v = _cast(q, k, v)
    _check_shapes(q, k, v)
    if cu_seqlens is not None:
        _check_cu_seqlens(cu_seqlens, q)
    _checks.alpha(alpha, q.device)
    _checks.one_of("saturation", arguments.saturation, SATURATIONS)
    _checks.positive_scale(arguments.scale)
    chosen = _backends.choose(arguments.backend, q.device, lambda name: KERNELS[name].unsupported(q))
    (alpha, alpha_tensor), (scale, scale_tensor) = _alpha(alpha, q), _scale(arguments.scale, q)
    tensors = cu_seqlens, alpha_tensor, scale_tensor
    settings = arguments.max_seqlen, alpha, scale, arguments.saturation, bool(arguments.deterministic), chosen
    return attention(q, k, v, *tensors, *settings)


def _alpha(alpha: float | Tensor, q: Tensor) -> tuple[float, Tensor | None]:
    """(alpha, None) or (0, alpha as a tensor). torch.compile gets a tensor, so that all values share a graph."""
    if isinstance(alpha, Tensor):
        return 0.0, alpha
    if not torch.compiler.is_compiling():
        return float(alpha), None
    # On q's device, because an operator that reads a CPU tensor is not captured in a CUDA graph. The compiler traces
    # this product as one of tensors; torch.full would make it a constant.
    return 0.0, torch.ones((), dtype=_checks.accumulation_dtype(q.dtype), device=q.device) * alpha


def _scale(scale: float | None, q: Tensor) -> tuple[float, Tensor | None]:
    """The same for the scale, but on the CPU, because the kernels take a number. The default stays a number."""
    default = q.shape[-1] ** -0.5
    if scale is None or scale == default:
        return default, None
    if not torch.compiler.is_compiling():
        return float(scale), None
    return 0.0, torch.ones((), dtype=torch.float64, device="cpu") * scale


def _cast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """As torch.autocast passes them to SDPA: in the autocast dtype where autocast is on (float64 stays)."""
    if not _autocast.enabled(tensors[0].device):
        return tensors
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return tuple(x if not x.dtype.is_floating_point or x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def _check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    _checks.floating_alike(q=q, k=k, v=v)
    (*q_tokens, heads, head_dim), (*k_tokens, kv_heads, k_head_dim) = q.shape, k.shape
    if k.shape != v.shape:
        raise ValueError(f"v must have the shape of k, {list(k.shape)}, got {list(v.shape)}")
    if k_tokens != q_tokens:
        raise ValueError(f"k must have the tokens of q, {q_tokens}, got {k_tokens}")
    if k_head_dim != head_dim or head_dim == 0:
        raise ValueError(f"k must have the head_dim of q (at least 1), {head_dim}, got {k_head_dim}")
    if heads == 0 or kv_heads == 0 or heads % kv_heads != 0:
        raise ValueError(f"q must have a multiple of the {kv_heads} heads of k and v, got {heads} heads")


def _check_cu_seqlens(cu_seqlens: Tensor, q: Tensor) -> None:
    if cu_seqlens.dtype != torch.int32:
        raise TypeError(f"cu_seqlens must be int32, got {cu_seqlens.dtype}")
    if cu_seqlens.device != q.device:
        raise ValueError(f"cu_seqlens must be on the device of q, {q.device}, got {cu_seqlens.device}")
    if cu_seqlens.shape[0] == 0:
        raise ValueError("cu_seqlens must have S + 1 >= 1 entries, got none")
