"""How many blocks of a kernel an SM holds at once, and which resource limits that.

Limits: CUDA C++ Programming Guide, "Compute Capabilities", technical specifications per compute capability. Rounding:
the toolkit's own calculator, cuda_occupancy.h. Registers go to warps in units of 256, in each of 4 sub-partitions,
shared memory to blocks in units of 128 bytes, 1 KB more than the block asks for. Not modelled: clusters of blocks.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

WARP_SIZE, SUB_PARTITIONS = 32, 4
MAX_THREADS_OF_BLOCK = 1024
REGISTERS, REGISTER_UNIT = 65536, 256  # of an SM, and at most of a block
RESERVED_SHARED, SHARED_UNIT = 1024, 128  # bytes; reserved in every block


class Limits(NamedTuple):
    """Of an SM; shared memory in bytes, of which a block has at most 1 KB less."""

    warps: int
    blocks: int
    shared: int


LIMITS = {
    "8.0": Limits(warps=64, blocks=32, shared=164 * 1024),
    "8.6": Limits(warps=48, blocks=16, shared=100 * 1024),
    "8.9": Limits(warps=48, blocks=24, shared=100 * 1024),
    "9.0": Limits(warps=64, blocks=32, shared=228 * 1024),
    "10.0": Limits(warps=64, blocks=32, shared=228 * 1024),
    "12.0": Limits(warps=48, blocks=24, shared=100 * 1024),
}


@dataclass(frozen=True)
class Occupancy:
    """blocks: at once on an SM; 0: a block does not fit. allowed: how many each resource alone would allow."""

    blocks: int
    warps: int
    max_warps: int
    allowed: dict[str, int]

    @property
    def limited_by(self) -> list[str]:
        return [resource for resource, blocks in self.allowed.items() if blocks == self.blocks]


def capability(architecture: str) -> str:
    """ "9.0" of "sm_90a"."""
    match = re.fullmatch(r"sm_(\d+)(\d)[a-z]?", architecture)
    return f"{match[1]}.{match[2]}" if match else architecture


def occupancy(architecture: str, *, threads: int, registers: int, shared: int) -> Occupancy | None:
    """registers: of a thread; shared: static and dynamic bytes of a block. None for a chip without known limits."""
    if (limits := LIMITS.get(capability(architecture))) is None:
        return None
    warps = -(-threads // WARP_SIZE)
    of_warp = ceil_to(max(1, registers) * WARP_SIZE, REGISTER_UNIT)
    starts = of_warp * ceil_to(warps, SUB_PARTITIONS) <= REGISTERS
    allowed = {
        "registers": REGISTERS // SUB_PARTITIONS // of_warp * SUB_PARTITIONS // warps if starts else 0,
        "shared memory": limits.shared // ceil_to(shared + RESERVED_SHARED, SHARED_UNIT),
        "warps": limits.warps // warps if threads <= MAX_THREADS_OF_BLOCK else 0,
        "block slots": limits.blocks,
    }
    blocks = min(allowed.values())
    return Occupancy(blocks, blocks * warps, limits.warps, allowed)


def ceil_to(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
