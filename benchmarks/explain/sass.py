"""Machine code as cuobjdump prints it: the instructions, and how many there are of each kind."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

_INSTRUCTION = re.compile(
    r"^\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:@(?P<guard>!?\w+)\s+)?(?P<opcode>[A-Z][\w.]*)\s*(?P<operands>[^;]*?)\s*;"
)
_FUNCTION = re.compile(r"^\s*Function : (?P<symbol>\S+)")

TENSOR = ("HMMA", "HGMMA")
SPILLS = "LDL/STL (spills)"
# What is counted apart, in the order in which it is printed. Keys are opcodes without what follows the first dot.
KINDS = {
    "HGMMA": "HGMMA",
    "HMMA": "HMMA",
    "LDSM": "LDSM",
    "LDS": "LDS",
    "STS": "STS",
    "LDGSTS": "LDGSTS",
    "UTMALDG": "TMA",
    "UTMASTG": "TMA",
    "UTMAREDG": "TMA",
    "UBLKCP": "TMA",
    "LDG": "LDG",
    "STG": "STG",
    "RED": "RED/ATOM",
    "REDG": "RED/ATOM",
    "ATOM": "RED/ATOM",
    "ATOMG": "RED/ATOM",
    "ATOMS": "RED/ATOM",
    "LDL": SPILLS,
    "STL": SPILLS,
    "BAR": "BAR",
    "SYNCS": "SYNCS (mbarrier)",
    "SHFL": "SHFL",
    "FFMA": "FFMA",
    "FADD": "FADD",
    "FMUL": "FMUL",
}
EXP2, OTHER_MUFU = "MUFU.EX2", "MUFU, others"
ORDER = [*dict.fromkeys(KINDS.values())]
ORDER[2:2] = [EXP2, OTHER_MUFU]


@dataclass(frozen=True)
class Instruction:
    """guard: the predicate without which it does nothing, None if it always does something."""

    address: int
    guard: str | None
    opcode: str  # "HMMA.16816.F32.BF16"
    operands: str

    @property
    def base(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def kind(self) -> str | None:
        """A key of ORDER, or None."""
        if self.base == "MUFU":
            return EXP2 if self.opcode.startswith("MUFU.EX2") else OTHER_MUFU
        return KINDS.get(self.base)


def parse(text: str, symbol: str | None = None) -> list[Instruction]:
    """The instructions of `symbol` (of everything, without one), but for the padding behind the code."""
    inside, code = symbol is None, []
    for line in text.splitlines():
        if function := _FUNCTION.match(line):
            inside = symbol is None or function["symbol"] == symbol
        elif inside and (match := _INSTRUCTION.match(line)):
            code.append(Instruction(int(match["address"], 16), match["guard"], match["opcode"], match["operands"]))
    # Behind the code stands a branch to itself, where no one should get, then NOP up to a round address.
    while code and (code[-1].base == "NOP" or (code[-1].base == "BRA" and _is_own_target(code[-1]))):
        code.pop()
    return code


def _is_own_target(branch: Instruction) -> bool:
    return branch.operands.strip() == hex(branch.address)


@dataclass(frozen=True)
class Mix:
    """How many instructions of each kind; `others`: opcodes that have no kind."""

    total: int
    kinds: Counter[str]
    others: Counter[str]

    @classmethod
    def of(cls, instructions: Iterable[Instruction]) -> Mix:
        kinds: Counter[str] = Counter()
        others: Counter[str] = Counter()
        for instruction in instructions:
            if kind := instruction.kind:
                kinds[kind] += 1
            else:
                others[instruction.base] += 1
        return cls(kinds.total() + others.total(), kinds, others)

    @property
    def tensor(self) -> int:
        """Instructions of the tensor cores."""
        return sum(self.kinds[kind] for kind in TENSOR)
