"""How the torch backend of soft-masked attention cuts a batch into parts, and moves rows to a part and back.

Sequences of nearly one length are padded and computed together, and no loop runs over short sequences. Query head
h * G + g reads K/V head h; a part's query rows are ordered (query position, g), so the G query heads of a K/V head are
one taller matrix and K/V are never expanded. Every token belongs to one sequence, so results are scattered by unique
index: bit-equal from run to run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _checks

# Bound on the two score-sized buffers that live at once (weights and their gradient). On a CPU they should stay in the
# cache: one thread, L = 2048, 4 heads of 64, forward + backward took 0.26 s with 1 MB, 0.23 s with 4 MB, 0.30 s with
# 16 MB and 0.53 s with 64 MB.
WORKSPACE_BYTES = 64 << 20
CPU_WORKSPACE_BYTES = 4 << 20
# Sequences up to 8 tokens or a fifth shorter than the longest are padded together with it: at most 25 % padding on long
# ones, and short ones, whose GEMMs cost less than a call, go together.
PADDING_TOKENS, PADDING_SHARE = 8, 0.2


class Block(NamedTuple):
    """Query positions of a part that are computed together, and the number of keys that they need."""

    first: int
    stop: int
    keys: int


class Part(NamedTuple):
    """Sequences and K/V heads that are computed together. The sequences are padded to one length."""

    num_sequences: int
    length: int
    batch: slice | None = None  # which sequences of a batch [B, L, heads, D]; None: all, or the batch is packed
    heads: slice | None = None  # which K/V heads; None: all
    blocks: tuple[Block, ...] = ()  # that fit the workspace, the last one first: no other one needs more keys
    # Packed batches only.
    source: Tensor | None = None  # [n * L] the packed row of each place; padding repeats the sequence's last row
    lengths: tuple[int, ...] | None = None  # own lengths; None if all have `length` tokens
    places: Tensor | None = None  # the places of [n * L] that are tokens; None if all are
    target: Tensor | None = None  # [number of tokens] the packed row of each of these places

    def on(self, device: torch.device) -> Part:
        source, places, target = (x if x is None else x.to(device) for x in (self.source, self.places, self.target))
        return self._replace(source=source, places=places, target=target)

    def take(self, x: Tensor, group_size: int, dtype: torch.dtype) -> Tensor:
        """The part's rows of x, which has group_size heads per K/V head: [n * K/V heads, L * group_size, D] in `dtype`.

        It may be a view of x.
        """
        rows = x if self.heads is None else x.narrow(-2, *_span(self.heads, group_size))
        if self.source is not None:
            rows = rows.index_select(0, self.source).view(self.num_sequences, self.length, -1, rows.shape[-1])
        elif self.batch is not None:
            rows = rows[self.batch]
        if group_size > 1:
            rows = rows.view(*rows.shape[:2], -1, group_size, rows.shape[-1])
        rows = rows.transpose(1, 2)
        if rows.dtype != dtype:
            rows = rows.to(dtype, memory_format=torch.contiguous_format)
        return rows.reshape(-1, self.length * group_size, rows.shape[-1])

    def put(self, target: Tensor, value: Tensor, group_size: int) -> None:
        """Writes value, in the form of `take`, to the part's rows of target."""
        positions = (self.length, group_size) if group_size > 1 else (self.length,)
        rows = value.view(self.num_sequences, -1, *positions, value.shape[-1]).transpose(1, 2)
        if self.heads is not None:
            target = target.narrow(-2, *_span(self.heads, group_size))
        if self.source is None:
            target = target if self.batch is None else target[self.batch]
            (target.view(rows.shape) if group_size > 1 else target).copy_(rows)
            return
        rows, index = rows.reshape(-1, *target.shape[1:]), self.source
        if self.places is not None and self.target is not None:
            rows, index = rows.index_select(0, self.places), self.target
        target.index_copy_(0, index, rows.to(target.dtype))


def _span(heads: slice, group_size: int) -> tuple[int, int]:
    """The first query head of K/V heads `heads`, and how many query heads there are."""
    return heads.start * group_size, (heads.stop - heads.start) * group_size


class _Sizes(NamedTuple):
    """What the parts of a batch depend on, besides its sequences."""

    kv_heads: int
    group_size: int
    room: int  # scores that may live at once: elements of each of the two buffers
    causal: bool


def parts(q: Tensor, k: Tensor, cu_seqlens: Tensor | None, max_seqlen: int, causal: bool) -> Iterable[Part]:
    """The parts of a batch: all heads of several sequences, or one K/V head of a long one."""
    workspace = CPU_WORKSPACE_BYTES if q.is_cpu else WORKSPACE_BYTES
    element_bytes = 8 if q.dtype == torch.float64 else 4
    kv_heads = k.shape[-2]
    sizes = _Sizes(kv_heads, q.shape[-2] // kv_heads, workspace // (2 * element_bytes), causal)
    if cu_seqlens is None:
        return _batch_parts(q.shape[0], q.shape[1], sizes)
    found = _packed_parts(tuple(cu_seqlens.tolist()), max_seqlen, q.shape[0], sizes)
    return found if q.is_cpu else (part.on(q.device) for part in found)


# All layers of a model have the same sequences, in both passes.
@lru_cache(maxsize=8)
def _batch_parts(batch: int, length: int, sizes: _Sizes) -> list[Part]:
    if batch == 0 or length == 0:
        return []
    step = _fitting(length, sizes)
    if step >= batch:
        return list(_by_heads(Part(batch, length), sizes))
    starts = range(0, batch, step)
    slices = [slice(start, min(start + step, batch)) for start in starts]
    return [part for s in slices for part in _by_heads(Part(s.stop - s.start, length, s), sizes)]


@lru_cache(maxsize=8)
def _packed_parts(offsets: tuple[int, ...], max_seqlen: int, tokens: int, sizes: _Sizes) -> list[Part]:
    lengths = _checks.sequences(offsets, max_seqlen, tokens)
    order = sorted((s for s in range(len(lengths)) if lengths[s] > 0), key=lambda s: -lengths[s])
    found: list[Part] = []
    first = 0
    while first < len(order):
        length = lengths[order[first]]
        shortest = max(1, length - max(PADDING_TOKENS, int(PADDING_SHARE * length)))
        most = _fitting(length, sizes)
        last = first + 1
        while last < len(order) and last - first < most and lengths[order[last]] >= shortest:
            last += 1
        together = order[first:last]
        part = _pad_sequences([offsets[s] for s in together], [lengths[s] for s in together])
        found.extend(_by_heads(part, sizes))
        first = last
    return found


def _fitting(length: int, sizes: _Sizes) -> int:
    """How many sequences of this length fit the workspace with all heads; at least one."""
    return max(1, sizes.room // (sizes.kv_heads * sizes.group_size * length**2))


def _by_heads(part: Part, sizes: _Sizes) -> Iterator[Part]:
    """The part with its blocks, if it fits the workspace, else one part per K/V head."""
    row_scores = part.num_sequences * sizes.group_size * part.length  # of a query position and a K/V head
    if row_scores * part.length * sizes.kv_heads <= sizes.room:
        yield part._replace(blocks=_blocks(part.length, part.length, sizes.causal))
        return
    blocks = _blocks(part.length, max(1, sizes.room // row_scores), sizes.causal)
    yield from (part._replace(heads=slice(head, head + 1), blocks=blocks) for head in range(sizes.kv_heads))


def _blocks(length: int, step: int, causal: bool) -> tuple[Block, ...]:
    stops = ((first, min(first + step, length)) for first in reversed(range(0, length, step)))
    return tuple(Block(first, stop, stop if causal else length) for first, stop in stops)


def _pad_sequences(starts: list[int], lengths: list[int]) -> Part:
    """The part of packed sequences from these rows on, the longest of them first."""
    count, length = len(starts), lengths[0]
    position, own = torch.arange(length, device="cpu"), torch.tensor(lengths, device="cpu")[:, None]
    source = (torch.tensor(starts, device="cpu")[:, None] + position.minimum(own - 1)).flatten()
    if lengths[-1] == length:
        return Part(count, length, source=source)
    places = (position < own).flatten().nonzero().flatten()
    return Part(count, length, source=source, lengths=tuple(lengths), places=places, target=source[places])
