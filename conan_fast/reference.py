"""The plain definitions of the operators, which every test compares with: autograd by torch, any memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .contrastive.result import InfoNCE


def soft_mask_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: float | Tensor,
    *,
    saturation: str = "key",
    scale: float | None = None,
    deterministic: bool = False,
) -> Tensor:
    """softmax_j(scale q_i.k_j + log M_ij) v_j; q [B, L, Hq, D], k and v [B, L, Hkv, D] (section 3.2, eq. 3-4)."""
    length, group = q.shape[1], q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
    i = torch.arange(1, length + 1, device=q.device)[:, None]
    j = torch.arange(1, length + 1, device=q.device)[None, :]
    index = {"key": j, "query": i, "uniform": torch.full_like(i, length)}[saturation]
    faded = (alpha * length / index.to(q.dtype)).clamp(max=1)
    mask = torch.where(j <= i, 1, faded)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return torch.einsum("bhij,bjhd->bihd", (scores + mask.log()).softmax(-1), v)


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
) -> Tensor:
    """`soft_mask_attention` of each sequence by itself; q [T, Hq, D], k and v [T, Hkv, D]."""
    lengths = cu_seqlens.diff().tolist() or [0]  # no sequence is like an empty one
    parts = [
        soft_mask_attention(a[None], b[None], c[None], alpha, saturation=saturation, scale=scale)[0]
        for a, b, c in zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
    ]
    return torch.cat(parts)


def normalise(x: Tensor) -> Tensor:
    """x / |x| over the last dimension; a zero vector stays zero, with zero gradient."""
    squared = x.square().sum(-1, keepdim=True)
    return torch.where(squared != 0, x / torch.where(squared != 0, squared, 1).sqrt(), 0)


def info_nce(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.05,
    dims: Sequence[int] | None = None,
    dim_weights: Sequence[float] | None = None,
    positive_ids: Tensor | None = None,
    negative_ids: Tensor | None = None,
    negative_scope: str = "shared",
) -> InfoNCE:
    """sum_d w_d mean_i -log(exp(s_ii) / sum_j exp(s_ij)), s = cos / temperature of the first d elements (eq. 1)."""
    size = len(queries)
    dims = [queries.shape[1]] if dims is None else dims
    weights = [1.0] * len(dims) if dim_weights is None else dim_weights
    own = torch.eye(size, dtype=torch.bool, device=queries.device)
    masked = torch.zeros_like(own)
    if positive_ids is not None:
        masked = (positive_ids[:, None] == positive_ids[None, :]) & ~own
    if negatives is not None:
        same = torch.zeros(size, *negatives.shape[:2], dtype=torch.bool, device=queries.device)
        if positive_ids is not None and negative_ids is not None:
            same = positive_ids[:, None, None] == negative_ids[None]
        if negative_scope == "private":
            same = same | ~own[:, :, None]
        masked = torch.cat([masked, same.flatten(1)], 1)
    losses = []
    for dim in dims:
        candidates = positives[:, :dim]
        if negatives is not None:
            candidates = torch.cat([candidates, negatives[..., :dim].flatten(0, 1)])
        scores = normalise(queries[:, :dim]) @ normalise(candidates).T / temperature
        scores = scores.masked_fill(masked, -torch.inf)
        losses.append((scores.logsumexp(1) - scores.diagonal()).mean())
    loss = sum(weight * value for weight, value in zip(weights, losses, strict=True))
    negative_scores = None
    if negatives is not None:
        negative_scores = torch.einsum("nd,nkd->nk", normalise(queries), normalise(negatives)).detach()
    return InfoNCE(torch.as_tensor(loss), torch.stack(losses).detach(), negative_scores)


def cosent(
    a: Tensor,
    b: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor = 0.05,
    dims: Sequence[int] | None = None,
    dim_weights: Sequence[float] | None = None,
) -> Tensor:
    """sum_d w_d log(1 + sum over pairs with label_i > label_j of exp((s_j - s_i) / temperature)), s = cos (eq. 2)."""
    dims = [a.shape[1]] if dims is None else dims
    weights = [1.0] * len(dims) if dim_weights is None else dim_weights
    above = labels[:, None] > labels[None, :]
    total = a.new_zeros(())
    for dim, weight in zip(dims, weights, strict=True):
        score = (normalise(a[:, :dim]) * normalise(b[:, :dim])).sum(-1) / temperature
        terms = (score[None, :] - score[:, None])[above]
        total = total + weight * torch.cat([terms.new_zeros(1), terms]).logsumexp(0)
    return total
