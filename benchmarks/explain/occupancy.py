"""How many blocks of a kernel an SM holds at once, and what stops it from holding more.

Limits: CUDA C++ Programming Guide, "Compute Capabilities", technical specifications per compute capability. Rounding:
the toolkit's own calculator, cuda_occupancy.h. Registers go to warps in units of 256, in each of 4 sub-partitions,
shared memory to blocks in units of 128 bytes, 1 KB more than the block asks for. Not modelled: clusters of blocks.
"""

import re
from dataclasses import dataclass

WARP_SIZE = 32
MAX_THREADS_OF_BLOCK = 1024
REGISTERS = 65536  # of an SM, and at most of a block
REGISTER_UNIT = 256
SUB_PARTITIONS = 4
SHARED_UNIT = 128
RESERVED_SHARED = 1024  # of every block


@dataclass(frozen=True)
class Limits:
    """Of an SM; shared memory in bytes. A block has at most 1 KB less of it."""

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
    limits = LIMITS.get(capability(architecture))
    if limits is None:
        return None
    warps = -(-threads // WARP_SIZE)
    allowed = {
        "registers": _by_registers(warps, registers),
        "shared memory": _by_shared(limits, shared),
        "warps": limits.warps // warps if threads <= MAX_THREADS_OF_BLOCK else 0,
        "block slots": limits.blocks,
    }
    blocks = min(allowed.values())
    return Occupancy(blocks, blocks * warps, limits.warps, allowed)


def _by_registers(warps: int, registers: int) -> int:
    of_warp = _round_up(max(1, registers) * WARP_SIZE, REGISTER_UNIT)
    if of_warp * _round_up(warps, SUB_PARTITIONS) > REGISTERS:  # the launch fails
        return 0
    return REGISTERS // SUB_PARTITIONS // of_warp * SUB_PARTITIONS // warps


def _by_shared(limits: Limits, shared: int) -> int:
    return limits.shared // _round_up(shared + RESERVED_SHARED, SHARED_UNIT)


def _round_up(count: int, unit: int) -> int:
    return -(-count // unit) * unit
