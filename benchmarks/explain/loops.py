"""The loop in which a kernel spends its time, found in its machine code.

A loop is a branch back to an instruction through which every path to the branch leads (a natural loop). Branches to
addresses in registers are not followed; calls are assumed to return.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx

from benchmarks.explain.sass import TENSOR, Instruction, Mix

_TARGET = re.compile(r"0x[0-9a-f]+")
_GLOBAL = ("LDG", "STG", "RED/ATOM")
_EVERY_TIME = ("LDGSTS", "TMA", "LDSM", "STS", "RED/ATOM")


@dataclass(frozen=True)
class Loop:
    """body: all instructions from which a path leads back to the first; step: those of one round.

    The round is the shortest of those with the most tensor core instructions (in a loop without them: global loads and
    stores) and, after that, the most copies, shared memory accesses and atomic additions. So what runs only at the end
    of a prefix or at the edge of a mask, without tensor core instructions, is not in it.
    inner: loops inside, whose instructions count once although they run more often.
    """

    body: tuple[Instruction, ...]
    step: tuple[Instruction, ...]
    inner: "tuple[Loop, ...]" = ()

    @property
    def first(self) -> int:
        return self.body[0].address


def hottest(code: Sequence[Instruction]) -> Loop | None:
    """The loop with the most tensor core instructions, the smallest of several.

    In a kernel without them: of the innermost loops the one with the most global loads and stores. None: no loop has
    either.
    """
    flow = _control_flow(code)
    bodies = _bodies(flow)
    mixes = {head: Mix(code[i] for i in body) for head, body in bodies.items()}
    if any(mix.tensor for mix in mixes.values()):
        worth = {head: mix.tensor for head, mix in mixes.items()}
    else:
        innermost = [head for head, body in bodies.items() if not any(h in body for h in bodies if h != head)]
        worth = {head: sum(mixes[head].kinds[kind] for kind in _GLOBAL) for head in innermost}
    best = max(worth, key=lambda head: (worth[head], -len(bodies[head])), default=None)
    if best is None or worth[best] == 0:
        return None

    def loop(head: int, inner: tuple[Loop, ...] = ()) -> Loop:
        way = _way_round(code, flow, head, bodies[head])
        return Loop(tuple(code[i] for i in sorted(bodies[head])), tuple(code[i] for i in way), inner)

    return loop(best, tuple(loop(head) for head in sorted(bodies) if head != best and head in bodies[best]))


def _control_flow(code: Sequence[Instruction]) -> "nx.DiGraph[int]":
    """By index, which instruction can follow which, as far as the first one leads."""
    index = {instruction.address: i for i, instruction in enumerate(code)}
    synchronised: dict[str, list[int]] = {}  # by barrier register: where threads that wait for each other continue
    flow: nx.DiGraph[int] = nx.DiGraph()
    flow.add_nodes_from(range(len(code)))
    for i, instruction in enumerate(code):
        next_one = [i + 1] if i + 1 < len(code) else []
        targets = [index[t] for t in (int(t, 16) for t in _TARGET.findall(instruction.operands)) if t in index]
        if instruction.base == "BSSY" and targets:
            synchronised.setdefault(instruction.operands.split(",")[0], []).append(targets[-1])
        if instruction.base in ("BRA", "JMP") and targets:
            conditional = instruction.guard is not None or "," in instruction.operands  # "BRA P1, 0x4d40"
            may_fall_through = conditional or ".DIV" in instruction.opcode or ".CONV" in instruction.opcode
            follow = [targets[-1], *(next_one if may_fall_through else [])]
        elif instruction.base == "BSYNC":
            known = synchronised.get(instruction.operands.strip(), [])
            follow = next_one if not known or i + 1 in known else [known[-1]]
        elif instruction.base in ("EXIT", "RET", "BRX", "JMX", "JMP", "BRA"):
            follow = next_one if instruction.guard else []
        else:
            follow = next_one
        flow.add_edges_from((i, j) for j in follow)
    return flow.subgraph(nx.descendants(flow, 0) | {0}) if code else flow


def _bodies(flow: "nx.DiGraph[int]") -> dict[int, set[int]]:
    """By the first instruction, the instructions of each natural loop."""
    bodies: dict[int, set[int]] = {}
    for last, head in flow.edges:
        outside = flow.subgraph(set(flow) - {head}) if head <= last else None
        if head == last:
            bodies.setdefault(head, {head})
        elif outside and (head == 0 or not nx.has_path(outside, 0, last)):  # every path to the last is through the head
            bodies.setdefault(head, {head}).update({last} | nx.ancestors(outside, last))
    return bodies


def _way_round(code: Sequence[Instruction], flow: "nx.DiGraph[int]", head: int, body: set[int]) -> list[int]:
    """The heaviest path from `head` to a branch back to it, along the edges that close no loop."""
    inside = flow.subgraph(body)
    order = list(nx.dfs_postorder_nodes(inside, head))[::-1]
    place = {i: number for number, i in enumerate(order)}
    wanted = TENSOR if any(code[i].kind in TENSOR for i in body) else _GLOBAL

    def value(i: int, before: tuple[int, int, int]) -> tuple[int, int, int]:
        return before[0] + (code[i].kind in wanted), before[1] + (code[i].kind in _EVERY_TIME), before[2] - 1

    best, came_from = {head: value(head, (0, 0, 0))}, {head: head}
    for i in order:  # before its successors, except along edges that close a loop
        for j in inside.successors(i):
            if place[j] > place[i] and (j not in best or value(j, best[i]) > best[j]):
                best[j], came_from[j] = value(j, best[i]), i
    way = [max((i for i in inside.predecessors(head) if i in best), key=lambda i: best[i])]
    while way[-1] != head:
        way.append(came_from[way[-1]])
    return way[::-1]
