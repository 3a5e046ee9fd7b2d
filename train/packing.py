"""Packed batches: sequences concatenated without padding, for variable-length attention."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TokenIds = Sequence[int]


@dataclass(frozen=True)
class Packed:
    """S sequences with T tokens in total."""

    input_ids: Tensor  # int64 [T]
    position_ids: Tensor  # int64 [T], from 0 in each sequence
    cu_seqlens: Tensor  # int32 [S + 1]
    max_seqlen: int
    labels: Tensor | None = None  # int64 [T], the next token, or IGNORE

    IGNORE = -100

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
    """Concatenate token sequences into a packed batch.

    Args:
        sequences: token ids, none empty (mean pooling is undefined for an empty one).
        prompt_lengths: for SFT, the number of leading tokens of each sequence that get no label.
        with_labels: add next-token labels (implied by `prompt_lengths`).

    Raises:
        ValueError: no sequence, or an empty one.
    """
    lengths = np.fromiter((len(s) for s in sequences), dtype=np.int64, count=len(sequences))
    if len(sequences) == 0 or lengths.min() == 0:
        raise ValueError(
            f"sequences: expected at least one, each with at least one token; got lengths {lengths.tolist()[:8]}"
        )
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
            labels[positions + 1 < np.repeat(np.asarray(prompt_lengths), lengths)] = Packed.IGNORE
    return Packed(
        input_ids=torch.from_numpy(ids).to(device),
        position_ids=torch.from_numpy(positions).to(device),
        cu_seqlens=torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32)).to(device),
        max_seqlen=int(lengths.max()),
        labels=None if labels is None else torch.from_numpy(labels).to(device),
    )


def split_by_tokens(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Split sequences into micro-batches of at most `max_tokens` tokens (a longer sequence gets its own).

    Returns:
        Indices of the sequences per micro-batch. The order is kept, so that results depend on `max_tokens` only by
        rounding.
    """
    micro_batches: list[list[int]] = []
    room = 0
    for index, length in enumerate(lengths):
        if not micro_batches or length > room:
            micro_batches.append([])
            room = max_tokens
        micro_batches[-1].append(index)
        room -= length
    return micro_batches
