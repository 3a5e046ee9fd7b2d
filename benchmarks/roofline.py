"""The rates that the machine reaches (GEMM, copy, kernel launch), and the roofline time of useful work.

Useful work only: what an implementation recomputes, pads or stores in between does not count.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks import timing

FLOP_OF_ATTENTION = {"forward": 4, "backward": 10}  # times heads, L^2 and D: 2 GEMMs forward, 5 backward
GEMM_SIZE = {"cuda": 8192, "cpu": 1024}  # of a square GEMM
COPIED_BYTES = {"cuda": 2**30, "cpu": 2**27}
LAUNCHES = 200  # in a row: the host gets ahead of the GPU before the first
ROUNDS = 20


@dataclass(frozen=True)
class Ceilings:
    """Measured rates. gemm_flop_per_s: of a large GEMM in `dtype`. copy_bytes_per_s: read + written by a large copy.

    launch_s: from one very small kernel to the next (CPU: one torch call on one element).
    """

    dtype: str
    gemm_flop_per_s: float
    copy_bytes_per_s: float
    launch_s: float

    def __str__(self) -> str:
        return (
            f"{self.dtype} GEMM {self.gemm_flop_per_s / 1e12:.3g} TFLOP/s, "
            f"copy {self.copy_bytes_per_s / 1e9:.4g} GB/s, launch {self.launch_s * 1e6:.2g} us"
        )


@dataclass(frozen=True)
class Work:
    """FLOP and bytes, each input read once and each output written once."""

    flop: float
    bytes: float

    def seconds(self, ceilings: Ceilings) -> float:
        """The roofline time: GEMMs and copies overlap at best."""
        return max(self.flop / ceilings.gemm_flop_per_s, self.bytes / ceilings.copy_bytes_per_s)

    @property
    def intensity(self) -> float:
        """FLOP per byte."""
        return self.flop / self.bytes


def attention_work(
    part: str, tokens: int, scores: int, heads: int, kv_heads: int, head_dim: int, element_size: int
) -> Work:
    """Of `part` "forward" or "backward" under a soft mask with alpha > 0 (alpha = 0 needs half of the FLOP).

    scores: the sum of L^2 over the sequences. Forward reads q, k, v and writes out; backward reads q, k, v, out, dout
    and writes dq, dk, dv.
    """
    heads_moved = {"forward": 2 * heads + 2 * kv_heads, "backward": 4 * heads + 4 * kv_heads}[part]
    flop = FLOP_OF_ATTENTION[part] * heads * scores * head_dim
    return Work(flop, heads_moved * tokens * head_dim * element_size)


def info_nce_work(*, pairs: int, candidates: int, dim: int, element_size: int = 2) -> Work:
    """Loss and gradients, for all Matryoshka dims together: scores, gradients of queries and of candidates."""
    return Work(6 * pairs * candidates * dim, 2 * (pairs + candidates) * dim * element_size)


def measure(device: torch.device) -> Ceilings:
    """GEMM of random elements (zeros take less power, so clocks stay higher) in bfloat16, on a CPU in float32."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    size, copied = GEMM_SIZE[device.type], COPIED_BYTES[device.type]
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    source = torch.ones(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    one = torch.ones(1, device=device)
    clock = timing.Clock(device)

    def fastest(step: Callable[[], object]) -> float:
        timing.warm_up(step, clock)
        return min(clock.once(step).work for _ in range(ROUNDS))

    return Ceilings(
        dtype=str(dtype).removeprefix("torch."),
        gemm_flop_per_s=2 * size**3 / fastest(lambda: torch.mm(a, b, out=out)),
        copy_bytes_per_s=2 * copied / fastest(lambda: target.copy_(source)),
        launch_s=fastest(lambda: [one.add_(0.0) for _ in range(LAUNCHES)]) / LAUNCHES,
    )
