"""What no implementation can do without: floating-point operations and bytes, and the time they take at the ceilings.

Useful work alone: what an implementation recomputes, pads or stores in between does not count.
"""

from __future__ import annotations

from dataclasses import dataclass

FLOP_OF_ATTENTION = {"forward": 4, "backward": 10}  # times B H L^2 D: 2 products forward, 5 backward


@dataclass(frozen=True)
class Ceilings:
    """What the machine was measured to do at most.

    product_flop_per_s: of a large matrix product in `dtype`. copy_bytes_per_s: read + written by a large copy.
    launch_s: from one very small kernel to the next (CPU: a call of torch on one number).
    """

    dtype: str
    product_flop_per_s: float
    copy_bytes_per_s: float
    launch_s: float


@dataclass(frozen=True)
class Work:
    """FLOP and bytes, each input read once and each output written once."""

    flop: float
    bytes: float

    def seconds(self, ceilings: Ceilings) -> float:
        """The floor: products and copies overlap at best."""
        return max(self.flop / ceilings.product_flop_per_s, self.bytes / ceilings.copy_bytes_per_s)

    @property
    def intensity(self) -> float:
        """FLOP per byte."""
        return self.flop / self.bytes


def attention_work(
    *, batch: int, length: int, heads: int, kv_heads: int, head_dim: int, part: str, element_size: int = 2
) -> Work:
    """Of `part` "forward" or "backward" under a soft mask with 0 < alpha (at alpha = 0 half of the FLOP).

    Forward reads q, k, v and writes out; backward reads q, k, v, out, dout and writes dq, dk, dv.
    """
    flop = FLOP_OF_ATTENTION[part] * batch * heads * length**2 * head_dim
    tensors = {"forward": 2 * heads + 2 * kv_heads, "backward": 4 * heads + 4 * kv_heads}[part]
    return Work(flop, tensors * batch * length * head_dim * element_size)


def info_nce_work(*, pairs: int, candidates: int, dim: int, element_size: int = 2) -> Work:
    """Loss and gradients, for all Matryoshka dims together: scores, gradients of queries and of candidates."""
    return Work(6 * pairs * candidates * dim, 2 * (pairs + candidates) * dim * element_size)
