"""Machine code as cuobjdump prints it: the instructions, and how many there are of each kind."""

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
# What is counted separately, in the order of printing. Keys are opcodes up to the first dot.
KINDS = {
    **{opcode: opcode for opcode in ("HGMMA", "HMMA", "LDSM", "LDS", "STS", "LDGSTS")},
    **dict.fromkeys(("UTMALDG", "UTMASTG", "UTMAREDG", "UBLKCP"), "TMA"),
    **{opcode: opcode for opcode in ("LDG", "STG")},
    **dict.fromkeys(("RED", "REDG", "ATOM", "ATOMG", "ATOMS"), "RED/ATOM"),
    **dict.fromkeys(("LDL", "STL"), SPILLS),
    "BAR": "BAR",
    "SYNCS": "SYNCS (mbarrier)",
    **{opcode: opcode for opcode in ("SHFL", "FFMA", "FADD", "FMUL")},
}
EXP2, OTHER_MUFU = "MUFU.EX2", "MUFU, others"
ORDER = [*dict.fromkeys(KINDS.values())]
ORDER[2:2] = [EXP2, OTHER_MUFU]


@dataclass(frozen=True)
class Instruction:
    """guard: the predicate on which it depends, None if it always runs."""

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
    """The instructions of `symbol` (without one, of everything), except for the padding after the code."""
    inside, code = symbol is None, []
    for line in text.splitlines():
        if function := _FUNCTION.match(line):
            inside = symbol is None or function["symbol"] == symbol
        elif inside and (match := _INSTRUCTION.match(line)):
            code.append(Instruction(int(match["address"], 16), match["guard"], match["opcode"], match["operands"]))
    # After the code come an unreachable branch to itself and NOPs up to a round address.
    while code and (code[-1].base == "NOP" or (code[-1].base == "BRA" and code[-1].operands == hex(code[-1].address))):
        code.pop()
    return code


class Mix:
    """How many instructions of each kind. others: opcodes that have no kind. tensor: of the tensor cores."""

    def __init__(self, instructions: Iterable[Instruction] = ()) -> None:
        instructions = list(instructions)
        self.total = len(instructions)
        self.kinds = Counter(instruction.kind for instruction in instructions if instruction.kind)
        self.others = Counter(instruction.base for instruction in instructions if not instruction.kind)
        self.tensor = sum(self.kinds[kind] for kind in TENSOR)
