"""Packed batches: sequences laid end to end without padding, as the varlen attention takes them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TokenIds = Sequence[int]


@dataclass(frozen=True)
class Packed:
    """S sequences with T tokens in all."""

    input_ids: Tensor  # int64 [T]
    position_ids: Tensor  # int64 [T], counted from 0 in each sequence
    cu_seqlens: Tensor  # int32 [S + 1]
    max_seqlen: int
    labels: Tensor | None = None  # int64 [T]: the token to predict at each place, IGNORE where there is none

    IGNORE = -100

    @property
    def num_tokens(self) -> int:
        return self.input_ids.numel()

    @property
    def num_sequences(self) -> int:
        return self.cu_seqlens.numel() - 1


def pack(
    sequences: Sequence[TokenIds],
    device: torch.device | str = "cpu",
    *,
    prompt_lengths: Sequence[int] | None = None,
    with_labels: bool = False,
) -> Packed:
    """Lay token sequences end to end.

    Args:
        sequences: token ids, none empty (an empty one has no mean to pool).
        prompt_lengths: for SFT, how many leading tokens of each sequence are given and not learnt.
        with_labels: add next-token labels (implied by `prompt_lengths`).

    Raises:
        ValueError: for no sequences or an empty one.
    """
    lengths = np.fromiter((len(s) for s in sequences), dtype=np.int64, count=len(sequences))
    if len(sequences) == 0 or lengths.min() == 0:
        raise ValueError(f"sequences: each needs at least one token, got lengths {lengths.tolist()[:8]}")
    ends = lengths.cumsum()
    starts = ends - lengths
    ids = np.concatenate([np.asarray(s, dtype=np.int64) for s in sequences])
    positions = np.arange(len(ids)) - np.repeat(starts, lengths)
    labels = None
    if with_labels or prompt_lengths is not None:
        labels = np.full(len(ids), Packed.IGNORE, dtype=np.int64)
        labels[:-1] = ids[1:]
        labels[ends - 1] = Packed.IGNORE  # the last token of a sequence must not predict the next sequence
        if prompt_lengths is not None:
            given = np.repeat(np.asarray(prompt_lengths), lengths)
            labels[positions + 1 < given] = Packed.IGNORE
    return Packed(
        input_ids=torch.from_numpy(ids).to(device),
        position_ids=torch.from_numpy(positions).to(device),
        cu_seqlens=torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32)).to(device),
        max_seqlen=int(lengths.max()),
        labels=None if labels is None else torch.from_numpy(labels).to(device),
    )


def split_by_tokens(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of the sequences in micro-batches of at most `max_tokens` tokens (a longer sequence stands alone).

    The order is kept, so that a run is the same whatever memory it is given, up to rounding.
    """
    parts: list[list[int]] = []
    room = 0
    for index, length in enumerate(lengths):
        if not parts or length > room:
            parts.append([])
            room = max_tokens
        parts[-1].append(index)
        room -= length
    return parts
