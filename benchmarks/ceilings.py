"""What the machine can do at most, measured before anything else: copies, matrix products, launches."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks import timing
from benchmarks.floors import Ceilings

SIZE = {"cuda": 8192, "cpu": 1024}  # of the square product
COPIED_BYTES = {"cuda": 2**30, "cpu": 2**27}
LAUNCHES = 200  # in a row: the host gets ahead of the GPU before the first
ROUNDS = 20


def measure(device: torch.device) -> Ceilings:
    """The product of random numbers (zeros take less power, so clocks stay higher) in bfloat16, on a CPU float32."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    size, copied = SIZE[device.type], COPIED_BYTES[device.type]
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    source = torch.ones(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    one = torch.ones(1, device=device)
    clock = timing.Clock(device)

    def launches() -> None:
        for _ in range(LAUNCHES):
            one.add_(0.0)

    def fastest(step: Callable[[], object]) -> float:
        timing.warm_up(step, clock)
        return min(clock.once(step) for _ in range(ROUNDS))

    return Ceilings(
        dtype=str(dtype).removeprefix("torch."),
        product_flop_per_s=2 * size**3 / fastest(lambda: torch.mm(a, b, out=out)),
        copy_bytes_per_s=2 * copied / fastest(lambda: target.copy_(source)),
        launch_s=fastest(launches) / LAUNCHES,
    )


def text(ceilings: Ceilings) -> str:
    return (
        f"{ceilings.dtype} product {ceilings.product_flop_per_s / 1e12:.3g} TFLOP/s, "
        f"copy {ceilings.copy_bytes_per_s / 1e9:.4g} GB/s, launch {ceilings.launch_s * 1e6:.2g} us"
    )
