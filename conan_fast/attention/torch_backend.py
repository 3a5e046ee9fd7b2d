"""The torch backend of soft-masked attention: any device, nothing of size L x L kept.

Every part of a batch (`parts.py`) goes through batched GEMMs, long sequences in blocks of query rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _checks
from .._numerics import exp_
from .parts import Block, Part, parts
from .settings import Gradients, Saved, Settings
from .soft_mask import above_diagonal

# Masks of at most this size are kept: on a CPU a new one takes longer than the attention of so short a sequence.
CACHED_MASK_ELEMENTS = 1 << 14


class Mask(NamedTuple):
    alpha: float | Tensor  # a tensor only where its value is not on the host
    saturation: str
    causal: bool  # known to be: this and the next take short cuts
    bidirectional: bool


def forward(q: Tensor, k: Tensor, v: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """(out like q, logsumexp of each row [..., heads, tokens], float32 or float64)."""
    mask, group_size, dtype = _mask(settings), q.shape[-2] // k.shape[-2], _checks.accumulation_dtype(q.dtype)
    out, logsumexp = q.new_empty(q.shape), q.new_empty((*q.shape[:-3], q.shape[-2], q.shape[-3]), dtype=dtype)
    for part in parts(q, k, settings.cu_seqlens, settings.max_seqlen, mask.causal):
        query, key, value = part.take(q, group_size, dtype), part.take(k, 1, dtype), part.take(v, 1, dtype)
        query, outs, logsumexps = query * settings.scale, [], []
        for block in part.blocks:
            weights = _scores(block, part, mask, query, key)
            largest = weights.amax(-1, keepdim=True)
            exp_(weights.sub_(largest))
            total = weights.sum(-1, keepdim=True)
            outs.append(torch.bmm(weights, _narrow(value, 0, block.keys)).div_(total))
            logsumexps.append(total.log_().add_(largest))
        part.put(out, _join(outs), group_size)
        part.put(_as_rows(logsumexp), _join(logsumexps), group_size)
    return out, logsumexp


def backward(grad_out: Tensor, saved: Saved, needed: Sequence[bool], settings: Settings) -> Gradients:
    """(dq, dk, dv), each like its input, or None where it is not needed."""
    q, k, v = saved[:3]
    mask, sizes = _mask(settings), (q.shape[-2] // k.shape[-2], 1, 1)
    dq, dk, dv = (x.new_empty(x.shape) if wanted else None for x, wanted in zip((q, k, v), needed, strict=True))
    for part in parts(q, k, settings.cu_seqlens, settings.max_seqlen, mask.causal):
        found = _part_gradients(part, grad_out, saved, needed, settings.scale, mask)
        for target, value, group_size in zip((dq, dk, dv), found, sizes, strict=True):
            if target is not None and value is not None:
                part.put(target, value, group_size)
    return dq, dk, dv


def _part_gradients(
    part: Part, grad_out: Tensor, saved: Saved, needed: Sequence[bool], scale: float, mask: Mask
) -> Gradients:
    """(dq, dk, dv) of a part. M is constant, so dS = P (dP - rowsum(dO O)) as without a mask."""
    (q, k, v, out, logsumexp), (need_dq, need_dk, need_dv) = saved, needed
    group_size, dtype = q.shape[-2] // k.shape[-2], logsumexp.dtype
    query, key = part.take(q, group_size, dtype) * scale, part.take(k, 1, dtype)
    grad, norm = part.take(grad_out, group_size, dtype), part.take(_as_rows(logsumexp), group_size, dtype)
    value = delta = dk = dv = None
    if need_dq or need_dk:
        value = part.take(v, 1, dtype)
        delta = (part.take(out, group_size, dtype) * grad).sum(-1, keepdim=True)
    dqs = []
    for block in part.blocks:
        weights = exp_(_scores(block, part, mask, query, key).sub_(_of(block, norm, group_size)))
        block_grad = _of(block, grad, group_size)
        if need_dv:
            dv = _add_product(dv, weights.mT, block_grad)
        if value is None or delta is None:
            continue
        grad_scores = torch.bmm(block_grad, _narrow(value, 0, block.keys).mT)
        grad_scores.sub_(_of(block, delta, group_size)).mul_(weights)
        if need_dq:
            dqs.append(torch.bmm(grad_scores, _narrow(key, 0, block.keys)))
        if need_dk:
            dk = _add_product(dk, grad_scores.mT, _of(block, query, group_size))
    return _join(dqs).mul_(scale) if need_dq else None, dk, dv


def _mask(settings: Settings) -> Mask:
    alpha = settings.alpha
    if isinstance(alpha, Tensor):
        if not alpha.is_cpu:
            return Mask(alpha, settings.saturation, False, False)
        alpha = alpha.item()
        _checks.alpha_value(alpha)
    return Mask(alpha, settings.saturation, alpha == 0.0, alpha == 1.0)


def _scores(block: Block, part: Part, mask: Mask, query: Tensor, key: Tensor) -> Tensor:
    """query . key + log M of a block: [n * K/V heads, rows * group_size, keys]. `query` is scaled."""
    group_size = query.shape[1] // part.length
    scores = torch.bmm(_of(block, query, group_size), _narrow(key, 0, block.keys).mT)
    if mask.bidirectional and part.lengths is None:
        return scores
    rows, count = block.stop - block.first, 1 if part.lengths is None else part.num_sequences
    small = query.is_cpu and count * rows * block.keys <= CACHED_MASK_ELEMENTS  # on a CPU alpha is a number
    log_mask = _cached_log_mask if small else _log_mask
    bias = log_mask(block, part.length, part.lengths, mask, query.dtype, query.device)
    if group_size > 1 or count > 1:
        scores.view(part.num_sequences, -1, rows, group_size, block.keys).add_(bias[:, None, :, None])
    else:
        scores.add_(bias)
    return scores


def _log_mask(
    block: Block,
    length: int,
    lengths: tuple[int, ...] | None,
    mask: Mask,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """log M with -inf on padding, [n or 1, rows, keys]."""
    first, stop, keys = block
    i = torch.arange(first, stop, device=device)[None, :, None]
    j = torch.arange(keys, device=device)[None, None, :]
    own = torch.tensor([length] if lengths is None else lengths, device=device)[:, None, None]
    above = above_diagonal(i, j, own, mask.alpha, mask.saturation, dtype).log()
    bias = torch.where(j <= i, above.new_zeros(()), above)
    if lengths is not None:
        # Rows of padding get weights 0 in the backward pass. In the forward pass they become NaN and are dropped.
        bias = bias.masked_fill((j >= own) | (i >= own), -torch.inf)
    return bias.expand(-1, stop - first, keys)


_cached_log_mask = lru_cache(maxsize=32)(_log_mask)


def _of(block: Block, x: Tensor, group_size: int) -> Tensor:
    """The block's rows of x [n * K/V heads, L * group_size, ...]."""
    return _narrow(x, block.first * group_size, (block.stop - block.first) * group_size)


def _narrow(x: Tensor, first: int, count: int) -> Tensor:
    """x[:, first : first + count]"""
    return x if count == x.shape[1] else x.narrow(1, first, count)


def _join(blocks: list[Tensor]) -> Tensor:
    """All rows of a part, from its blocks, of which the last one comes first."""
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks[::-1], 1)


def _add_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """total + left . right, in place; a later block can have fewer keys than the first, which makes `total`."""
    if total is None:
        return torch.bmm(left, right)
    _narrow(total, 0, left.shape[1]).baddbmm_(left, right)
    return total


def _as_rows(logsumexp: Tensor) -> Tensor:
    """logsumexp [..., heads, tokens] in the form of q: [..., tokens, heads, 1]."""
    return logsumexp.mT.unsqueeze(-1)
