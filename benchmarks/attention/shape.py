"""What is measured: about 16,384 tokens, 32 query and 8 key/value heads, as in the paper's model; on a CPU a fourth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from benchmarks.floors import Work, attention_work

ALPHA = 0.3  # strength of the soft mask: above the diagonal every tile has work, and most have a mask
DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}
HEAD_DIMS = (112, 128)
LENGTHS = {"cuda": (512, 1024, 2048, 4096, 8192, 16384, 32768), "cpu": (128, 256, 512, 1024)}
HEADS = {"cuda": (32, 8), "cpu": (8, 2)}
TOKENS = {"cuda": 16384, "cpu": 1024}


@dataclass(frozen=True)
class Shape:
    batch: int
    length: int
    head_dim: int
    heads: int = 32
    kv_heads: int = 8
    element_size: int = 2

    def work(self, part: str) -> Work:
        return attention_work(**vars(self), part=part)


def shapes(device_type: str) -> list[Shape]:
    """Those nearest to L = 8,192 first, on a CPU to L = 512; of head_dim 128 later than of 112, the paper's."""
    telling = {"cuda": 8192, "cpu": 512}[device_type]
    pairs = [(length, head_dim) for length in LENGTHS[device_type] for head_dim in HEAD_DIMS]
    pairs.sort(key=lambda pair: (abs(math.log2(pair[0] / telling)) + 1.5 * (pair[1] != 112), pair))
    size, (heads, kv_heads) = DTYPES[device_type].itemsize, HEADS[device_type]
    batches = [max(1, TOKENS[device_type] // length) for length, _ in pairs]
    return [
        Shape(batch, length, head_dim, heads, kv_heads, size)
        for batch, (length, head_dim) in zip(batches, pairs, strict=True)
    ]
