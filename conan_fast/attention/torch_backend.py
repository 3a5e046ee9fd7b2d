"""The torch backend of soft-masked attention: any device, nothing of size L x L kept, no loop over short sequences.

Sequences of nearly one length are gathered from a packed batch, padded to [n, L, heads, D], and go through batched
GEMMs together. Long sequences go through in blocks of query rows. Query head h * G + g reads K/V head h; rows are
ordered (query position, g), so the G query heads of a K/V head are one taller matrix and K/V are never expanded.
Every token belongs to one sequence, so results are scattered by unique index: bit-equal from run to run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _checks
from .._numerics import exp_
from .settings import Settings
from .soft_mask import above_diagonal

# Bound on the two score-sized buffers that live at once (weights and their gradient). On a CPU they should stay in the
# cache: one thread, L = 2048, 4 heads of 64, forward + backward took 0.26 s with 1 MB, 0.23 s with 4 MB, 0.30 s with
# 16 MB and 0.53 s with 64 MB.
WORKSPACE_BYTES = 64 << 20
CPU_WORKSPACE_BYTES = 4 << 20
# Sequences up to 8 tokens or a fifth shorter than the longest are padded together with it: at most 25 % padding on long
# ones, and short ones, whose GEMMs cost less than a call, go together.
PADDING_TOKENS, PADDING_SHARE = 8, 0.2


class PaddedSequences(NamedTuple):
    """Sequences that are computed together, padded to one length."""

    num_sequences: int
    length: int
    batch: slice | None  # which sequences of a batch [B, L, heads, D]; None for a packed one
    source: Tensor | None  # [n * L] the packed row of each place; padding repeats the sequence's last row
    lengths: Tensor | None  # [n] own lengths; None if all have `length` tokens
    places: Tensor | None  # the places of [n * L] that are tokens; None if all are
    target: Tensor | None  # [number of tokens] the packed row of each of these places


class Mask(NamedTuple):
    alpha: float | Tensor
    saturation: str


def forward(q: Tensor, k: Tensor, v: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """(out like q, logsumexp of each row [..., heads, tokens], float32 or float64)."""
    mask = Mask(_alpha(settings.alpha, settings.alpha_tensor), settings.saturation)
    dtype = _checks.accumulation_dtype(q.dtype)
    out, logsumexp = q.new_empty(q.shape), q.new_empty((*q.shape[:-3], q.shape[-2], q.shape[-3]), dtype=dtype)
    group_size = q.shape[-2] // k.shape[-2]
    for sequences, heads in _parts(q, k, settings.cu_seqlens, settings.max_seqlen):
        query = _take_queries(q, sequences, heads, group_size).mul_(settings.scale)
        key, value = _take(k, sequences, heads), _take(v, sequences, heads)
        part = torch.empty_like(query)
        part_logsumexp = query.new_empty(query.shape[:-1])
        for rows, keys, bias in _row_blocks(sequences, heads, group_size, mask, query):
            block = slice(rows.start * group_size, rows.stop * group_size)
            weights = _scores(query[:, block], key[:, keys], bias, sequences.num_sequences, group_size)
            largest = weights.amax(-1, keepdim=True)
            exp_(weights.sub_(largest))
            total = weights.sum(-1, keepdim=True)
            part[:, block] = torch.bmm(weights, value[:, keys]).div_(total)
            part_logsumexp[:, block] = total.log_().add_(largest).squeeze(-1)
        _put_queries(out, part, sequences, heads, group_size)
        _put_queries(logsumexp.mT.unsqueeze(-1), part_logsumexp.unsqueeze(-1), sequences, heads, group_size)
    return out, logsumexp


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, settings: Settings
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv), each like its input. M is constant, so dS = P (dP - rowsum(dO O)) as without a mask."""
    mask = Mask(_alpha(settings.alpha, settings.alpha_tensor), settings.saturation)
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    group_size = q.shape[-2] // k.shape[-2]
    for sequences, heads in _parts(q, k, settings.cu_seqlens, settings.max_seqlen):
        query = _take_queries(q, sequences, heads, group_size).mul_(settings.scale)
        key, value = _take(k, sequences, heads), _take(v, sequences, heads)
        grad = _take_queries(grad_out, sequences, heads, group_size)
        delta = _take_queries(out, sequences, heads, group_size).mul_(grad).sum(-1, keepdim=True)
        norm = _take_queries(logsumexp.mT.unsqueeze(-1), sequences, heads, group_size)
        if sequences.lengths is not None:
            norm = _pad_rows(norm, sequences, group_size)
        grad_query, grad_key, grad_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for rows, keys, bias in _row_blocks(sequences, heads, group_size, mask, query):
            block = slice(rows.start * group_size, rows.stop * group_size)
            weights = _scores(query[:, block], key[:, keys], bias, sequences.num_sequences, group_size)
            exp_(weights.sub_(norm[:, block]))
            grad_value[:, keys].baddbmm_(weights.transpose(1, 2), grad[:, block])
            grad_scores = torch.bmm(grad[:, block], value[:, keys].transpose(1, 2))
            grad_scores.sub_(delta[:, block]).mul_(weights)
            grad_query[:, block] = torch.bmm(grad_scores, key[:, keys])
            grad_key[:, keys].baddbmm_(grad_scores.transpose(1, 2), query[:, block])
        _put_queries(dq, grad_query.mul_(settings.scale), sequences, heads, group_size)
        _put(dk, grad_key, sequences, heads)
        _put(dv, grad_value, sequences, heads)
    return dq, dk, dv


def _workspace(device: torch.device) -> int:
    return CPU_WORKSPACE_BYTES if device.type == "cpu" else WORKSPACE_BYTES


def _alpha(alpha: float, alpha_tensor: Tensor | None) -> float | Tensor:
    """The float where the value is on the host (then causal and bidirectional take short cuts), else the tensor."""
    if alpha_tensor is None:
        return alpha
    if alpha_tensor.device.type != "cpu":
        return alpha_tensor
    _checks.alpha_value(alpha_tensor.item())
    return float(alpha_tensor.item())


def _scores(query: Tensor, key: Tensor, bias: Tensor | None, count: int, group_size: int) -> Tensor:
    """query . key + log M: [n * heads, rows * group_size, keys]; bias [n or 1, 1, rows, 1, keys]."""
    scores = torch.bmm(query, key.transpose(1, 2))
    if bias is not None:
        scores.view(count, -1, bias.shape[2], group_size, key.shape[1]).add_(bias)
    return scores


def _row_blocks(
    sequences: PaddedSequences, heads: slice, group_size: int, mask: Mask, like: Tensor
) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """(query positions, keys they need, log M for them) in blocks that fit the workspace."""
    row_bytes = (
        2 * like.element_size() * sequences.num_sequences * (heads.stop - heads.start) * group_size * sequences.length
    )
    step = max(1, _workspace(like.device) // row_bytes)
    causal = isinstance(mask.alpha, float) and mask.alpha == 0.0
    for start in range(0, sequences.length, step):
        rows = slice(start, min(start + step, sequences.length))
        keys = slice(0, rows.stop if causal else sequences.length)
        yield rows, keys, _log_mask(rows, keys, sequences, mask, like)


def _log_mask(rows: slice, keys: slice, sequences: PaddedSequences, mask: Mask, like: Tensor) -> Tensor | None:
    """log M with -inf on padding, [n or 1, 1, rows, 1, keys]; None if it is 0 everywhere."""
    bidirectional = isinstance(mask.alpha, float) and mask.alpha == 1.0
    if bidirectional and sequences.lengths is None:
        return None
    i = torch.arange(rows.start, rows.stop, device=like.device)[None, :, None]
    j = torch.arange(keys.start, keys.stop, device=like.device)[None, None, :]
    lengths = torch.full_like(i[:, :1], sequences.length)
    if sequences.lengths is not None:
        lengths = sequences.lengths[:, None, None]
    if bidirectional:
        bias = torch.zeros((1, 1, 1), dtype=like.dtype, device=like.device)
    else:
        above = above_diagonal(i, j, lengths, mask.alpha, mask.saturation, like.dtype).log()
        bias = torch.where(j <= i, above.new_zeros(()), above)
    if sequences.lengths is not None:
        bias = bias.masked_fill(j >= lengths, -torch.inf)
    return bias.expand(-1, i.shape[1], j.shape[2])[:, None, :, None, :]


def _pad_rows(norm: Tensor, sequences: PaddedSequences, group_size: int) -> Tensor:
    """norm [n * heads, L * group_size, 1] with +inf on padding rows: their weights and gradients become 0."""
    assert sequences.lengths is not None
    padding = torch.arange(sequences.length, device=norm.device)[None, :] >= sequences.lengths[:, None]
    rows = norm.view(sequences.num_sequences, -1, sequences.length, group_size)
    return rows.masked_fill_(padding[:, None, :, None], torch.inf).view_as(norm)


def _parts(q: Tensor, k: Tensor, cu_seqlens: Tensor | None, max_seqlen: int) -> Iterator[tuple[PaddedSequences, slice]]:
    """(sequences, K/V heads) to compute together: all heads of several sequences, or one K/V head of a long one."""
    kv_heads = k.shape[-2]
    if q.numel() == 0 and cu_seqlens is None:
        return
    score_bytes = 2 * q.shape[-2] * torch.finfo(_checks.accumulation_dtype(q.dtype)).bits // 8
    packed = None if cu_seqlens is None else _packed_parts(q, cu_seqlens, max_seqlen, score_bytes)
    for sequences in packed or _batch_parts(q, score_bytes):
        fits = score_bytes * sequences.length**2 <= _workspace(q.device)
        step = kv_heads if fits else 1
        for head in range(0, kv_heads, step):
            yield sequences, slice(head, head + step)


def _batch_parts(q: Tensor, score_bytes: int) -> Iterator[PaddedSequences]:
    batch, length = q.shape[:2]
    step = max(1, _workspace(q.device) // (score_bytes * length**2))
    for start in range(0, batch, step):
        stop = min(start + step, batch)
        yield PaddedSequences(stop - start, length, slice(start, stop), None, None, None, None)


def _packed_parts(q: Tensor, cu_seqlens: Tensor, max_seqlen: int, score_bytes: int) -> Iterator[PaddedSequences]:
    starts, lengths = _checks.sequences(cu_seqlens, max_seqlen, q.shape[0])
    lengths, order = lengths.sort(descending=True, stable=True)
    starts = starts[order]
    sizes = lengths.tolist()
    first = 0
    while first < len(sizes) and sizes[first] > 0:
        length = sizes[first]
        shortest = max(1, length - max(PADDING_TOKENS, int(PADDING_SHARE * length)))
        most = max(1, _workspace(q.device) // (score_bytes * length**2))
        last = first
        while last < len(sizes) and last - first < most and sizes[last] >= shortest:
            last += 1
        yield _pad_sequences(starts[first:last], lengths[first:last], length, q.device)
        first = last


def _pad_sequences(starts: Tensor, lengths: Tensor, length: int, device: torch.device) -> PaddedSequences:
    position = torch.arange(length)
    source = (starts[:, None] + position.minimum(lengths[:, None] - 1)).flatten()
    if int(lengths[-1]) == length:
        return PaddedSequences(len(starts), length, None, source.to(device), None, None, None)
    places = (position < lengths[:, None]).flatten().nonzero().flatten()
    target = source[places]
    return PaddedSequences(
        len(starts), length, None, source.to(device), lengths.to(device), places.to(device), target.to(device)
    )


def _gather(x: Tensor, sequences: PaddedSequences, heads: slice) -> Tensor:
    """[n, L, heads, D] of the sequences, in x's dtype."""
    if sequences.batch is not None:
        return x[sequences.batch, :, heads]
    assert sequences.source is not None
    rows = x[:, heads].index_select(0, sequences.source)
    return rows.view(sequences.num_sequences, sequences.length, *rows.shape[1:])


def _take(x: Tensor, sequences: PaddedSequences, heads: slice) -> Tensor:
    """K or V of the sequences: [n * heads, L, D] in the accumulation dtype."""
    dtype = _checks.accumulation_dtype(x.dtype)
    return _gather(x, sequences, heads).transpose(1, 2).to(dtype).flatten(0, 1)


def _take_queries(x: Tensor, sequences: PaddedSequences, heads: slice, group_size: int) -> Tensor:
    """Something with query heads: [n * K/V heads, L * group_size, D] in the accumulation dtype."""
    dtype = _checks.accumulation_dtype(x.dtype)
    rows = _gather(x, sequences, slice(heads.start * group_size, heads.stop * group_size))
    rows = rows.unflatten(2, (-1, group_size)).transpose(1, 2)
    copy = torch.empty(rows.shape, dtype=dtype, device=x.device).copy_(rows)  # never a view: callers write to it
    return copy.view(rows.shape[0] * rows.shape[1], -1, rows.shape[-1])


def _scatter(target: Tensor, value: Tensor, sequences: PaddedSequences, heads: slice) -> None:
    """Writes value [n, L, heads, D] to the sequences' rows of target."""
    if sequences.batch is not None:
        target[sequences.batch, :, heads] = value
        return
    rows, index = value.to(target.dtype).flatten(0, 1), sequences.source
    if sequences.places is not None:
        rows, index = rows.index_select(0, sequences.places), sequences.target
    assert index is not None
    target[:, heads].index_copy_(0, index, rows)


def _put(target: Tensor, value: Tensor, sequences: PaddedSequences, heads: slice) -> None:
    _scatter(target, value.unflatten(0, (sequences.num_sequences, -1)).transpose(1, 2), sequences, heads)


def _put_queries(target: Tensor, value: Tensor, sequences: PaddedSequences, heads: slice, group_size: int) -> None:
    rows = (
        value.unflatten(0, (sequences.num_sequences, -1))
        .unflatten(2, (sequences.length, group_size))
        .transpose(1, 2)
        .flatten(2, 3)
    )
    _scatter(target, rows, sequences, slice(heads.start * group_size, heads.stop * group_size))
