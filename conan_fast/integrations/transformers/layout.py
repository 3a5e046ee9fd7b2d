"""Which positions of a batch are tokens and which sequence each belongs to, found once per forward pass.

transformers passes every layer the same mask and the same position_ids, so the layout is kept on that tensor. Finding
it makes a GPU wait once. While torch.compile traces nothing can wait: shapes are static there, padding is computed as
sequences of one token, and unused entries of cu_seqlens name empty sequences at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_ATTRIBUTE = "_conan_fast_layout"


class Layout(NamedTuple):
    """A batch [B, L] as packed sequences. All tensors are on the batch's device."""

    max_seqlen: int  # at least the longest sequence; exactly that unless torch.compile traces
    reach: int  # at least the places from the first to the last token of a sequence: more than its tokens with holes
    cu_seqlens: Tensor | None = None  # int32 [S + 1] of the packed tokens; None: every row is one sequence
    tokens: Tensor | None = None  # int64 [T], the packed tokens' places in the flattened batch; None: all in order

    def pack(self, x: Tensor) -> Tensor:
        """[B, L, ...] -> [T, ...]."""
        flat = x.flatten(0, 1)
        return flat if self.tokens is None else flat.index_select(0, self.tokens)

    def unpack(self, packed: Tensor, shape: torch.Size) -> Tensor:
        """[T, ...] -> `shape` [B, L, ...]; padding becomes 0."""
        if self.tokens is None:
            return packed.view(shape)
        return packed.new_zeros(shape).flatten(0, 1).index_copy(0, self.tokens, packed).view(shape)


def of_segments(segments_BL: Tensor, position_ids: Tensor | None = None) -> Layout:
    """The layout of a batch from a mask: 0 (or False) is padding; tokens of a row with one number are a sequence.

    Sequences of a row that has several follow one another. Raises ValueError for position_ids [B or 1, L] that begin
    anew within a sequence: then the mask says one thing and they another.
    """

    def find() -> Layout:
        if position_ids is not None:
            same = (segments_BL[:, 1:] == segments_BL[:, :-1]) & (segments_BL[:, 1:] != 0)
            raise_if(
                ((position_ids.diff(dim=1) <= 0) & same).any(),
                "attention_mask: got a mask and position_ids that begin anew within its sequences; leave the mask out "
                "for a packed batch",
            )
        return _find(segments_BL)

    return _kept(segments_BL, (), find)


def of_positions(position_ids: Tensor, batch_size: int) -> Layout:
    """The layout of a batch without a mask: a sequence begins where a position is not its predecessor plus 1.

    position_ids: [B, L], or [1, L] for all rows. Raises ValueError for other shapes, and where they are no positions
    of texts, which all begin with the same one.
    """
    if position_ids.dim() != 2:
        raise ValueError(f"position_ids must have shape [batch, length], got {list(position_ids.shape)}")

    def find() -> Layout:
        begins = position_ids.diff(dim=1) != 1
        elsewhere = begins & (position_ids[:, 1:] != position_ids[:, :1])
        constant = (position_ids == position_ids[:, :1]).all() if position_ids.shape[1] > 2 else elsewhere.any()
        raise_if(
            elsewhere.any() | constant,
            "position_ids: expected those of texts, rising by 1 and beginning anew with each text, got others; if they "
            "are not positions of tokens, pass attention_mask (1 for each token)",
        )
        return _find(segments_of_positions(position_ids).expand(batch_size, -1))

    return _kept(position_ids, (batch_size,), find)


def refuse_restarts(position_ids: Tensor) -> None:
    """Raises ValueError for positions by axis of an image, [axes, B, L], of packed texts."""
    raise_if(
        (position_ids[0, :, 1:] < position_ids[0, :, :1] + 1).any(),
        "position_ids: packed texts with positions by axis of an image are not supported; pad them",
    )


def segments_of_positions(position_ids: Tensor) -> Tensor:
    """[B, L], from 1 in each row: the number of the sequence that a token belongs to."""
    return torch.nn.functional.pad(position_ids.diff(dim=1) != 1, (1, 0)).cumsum(1) + 1


def keep(source: Tensor, layout: Layout, *key: int) -> None:
    """Makes `layout` the one of `source`, for as long as that has the same content."""
    setattr(source, _ATTRIBUTE, ((_version(source), *key), layout))


def _kept(source: Tensor, key: tuple[int, ...], find: Callable[[], Layout]) -> Layout:
    if torch.compiler.is_compiling():
        return find()
    version, layout = getattr(source, _ATTRIBUTE, (None, None))
    if layout is None or version != (_version(source), *key):
        layout = find()
        if key == () or not source.is_inference():  # masks are made for each pass; position_ids may be overwritten
            keep(source, layout, *key)
    return layout


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version  # tensors of inference mode do not count their changes


def raise_if(wrong: Tensor, message: str) -> None:
    """Raises ValueError where a 0-dim bool tensor is true; from a compiled graph RuntimeError, without waiting."""
    if torch.compiler.is_compiling():
        torch._assert_async(~wrong, message)
    elif bool(wrong):
        raise ValueError(message)


def _find(segments_BL: Tensor) -> Layout:
    if torch.compiler.is_compiling():
        return _find_static(segments_BL)
    length = segments_BL.shape[1]
    segments = segments_BL.to("cpu", torch.int64)  # here a GPU waits
    if bool(segments.all()) and bool((segments == segments[:, :1]).all()):
        return Layout(length, length)
    tokens = segments.flatten().nonzero().flatten()
    starts = _is_start(tokens, segments.flatten()[tokens], length).nonzero().flatten()
    cu_seqlens = torch.cat([starts, torch.tensor([len(tokens)])])
    device = segments_BL.device
    reach = tokens[cu_seqlens[1:] - 1] - tokens[starts] + 1
    return Layout(
        max_seqlen=int(cu_seqlens.diff().amax()) if len(starts) else 0,
        reach=int(reach.amax()) if len(starts) else 0,
        cu_seqlens=cu_seqlens.to(device, torch.int32),
        tokens=None if len(tokens) == segments.numel() else tokens.to(device),
    )


def _find_static(segments_BL: Tensor) -> Layout:
    flat = segments_BL.flatten().to(torch.int64)
    tokens = (flat == 0).to(torch.int8).argsort(stable=True)  # the tokens in their order, then the padding
    segment = flat[tokens]
    starts = _is_start(tokens, segment, segments_BL.shape[1]) | (segment == 0)
    places = torch.arange(flat.shape[0] + 1, device=flat.device)
    cu_seqlens = torch.searchsorted(starts.cumsum(0) - 1, places).to(torch.int32)
    return Layout(segments_BL.shape[1], segments_BL.shape[1], cu_seqlens, tokens)


def _is_start(tokens: Tensor, segment: Tensor, length: int) -> Tensor:
    """bool [T]: whether a token's row or segment is not that of the token before it."""
    row = tokens // length
    other = (row[1:] != row[:-1]) | (segment[1:] != segment[:-1])
    return torch.cat([torch.ones_like(tokens[:1], dtype=torch.bool), other])
