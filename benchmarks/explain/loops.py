"""The loop in which a kernel spends its time, found in its machine code.

A loop is a branch back to an instruction through which every way to the branch leads (a natural loop). Branches to
addresses that registers hold are not followed, calls are taken to return.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.explain.sass import TENSOR, Instruction, Mix

_TARGET = re.compile(r"0x[0-9a-f]+")
_GLOBAL = ("LDG", "STG", "RED/ATOM")
_EVERY_TIME = ("LDGSTS", "TMA", "LDSM", "STS", "RED/ATOM")


@dataclass(frozen=True)
class Loop:
    """body: all instructions from which the way back to the first leads; step: those of one way round.

    The way round is the shortest of those with the most tensor core products (without products in the loop: global
    loads and stores) and, after that, the most copies, shared memory accesses and atomic additions that feed them or
    take their results. So a prefix's end or a mask, which have no products, are not in it.
    inner: loops inside, whose instructions count once although they are done more often.
    """

    body: tuple[Instruction, ...]
    step: tuple[Instruction, ...]
    inner: tuple[Loop, ...] = ()

    @property
    def first(self) -> int:
        return self.body[0].address


def hottest(code: Sequence[Instruction]) -> Loop | None:
    """The loop with the most tensor core products, the smallest of several; in a kernel without them, of the loops that
    have no other inside the one with the most global loads and stores. None: no loop has either."""
    successors = _successors(code)
    bodies = _bodies(successors)
    mixes = {head: Mix.of(code[i] for i in body) for head, body in bodies.items()}
    if any(mix.tensor for mix in mixes.values()):
        worth = {head: mix.tensor for head, mix in mixes.items()}
    else:
        innermost = [head for head, body in bodies.items() if not any(h in body for h in bodies if h != head)]
        worth = {head: sum(mixes[head].kinds[kind] for kind in _GLOBAL) for head in innermost}
    head = max(worth, key=lambda head: (worth[head], -len(bodies[head])), default=None)
    if head is None or worth[head] == 0:
        return None
    inner = [_loop(code, successors, h, bodies[h]) for h in sorted(bodies) if h != head and h in bodies[head]]
    loop = _loop(code, successors, head, bodies[head])
    return Loop(loop.body, loop.step, tuple(inner))


def _successors(code: Sequence[Instruction]) -> list[list[int]]:
    """By index, where each instruction leads to."""
    index = {instruction.address: i for i, instruction in enumerate(code)}
    synchronised: dict[str, list[int]] = {}  # by barrier register: where threads that wait for each other go on
    result = []
    for i, instruction in enumerate(code):
        next_one = [i + 1] if i + 1 < len(code) else []
        targets = [index[t] for t in (int(t, 16) for t in _TARGET.findall(instruction.operands)) if t in index]
        if instruction.base == "BSSY" and targets:
            synchronised.setdefault(instruction.operands.split(",")[0], []).append(targets[-1])
        if instruction.base in ("BRA", "JMP") and targets:
            result.append([targets[-1], *(next_one if _may_fall_through(instruction) else [])])
        elif instruction.base == "BSYNC":
            known = synchronised.get(instruction.operands.strip(), [])
            result.append(next_one if not known or i + 1 in known else [known[-1]])
        elif instruction.base in ("EXIT", "RET", "BRX", "JMX", "JMP", "BRA"):
            result.append(next_one if instruction.guard else [])
        else:
            result.append(next_one)
    return result


def _may_fall_through(branch: Instruction) -> bool:
    conditional = branch.guard is not None or "," in branch.operands  # "BRA P1, 0x4d40"
    return conditional or ".DIV" in branch.opcode or ".CONV" in branch.opcode


def _bodies(successors: Sequence[Sequence[int]]) -> dict[int, set[int]]:
    """By the first instruction, the instructions of each natural loop."""
    reachable = _reach(successors, 0, without=None)
    before: list[list[int]] = [[] for _ in successors]
    for i in reachable:
        for j in successors[i]:
            before[j].append(i)
    bodies: dict[int, set[int]] = {}
    for last in reachable:
        for head in successors[last]:
            if head <= last and last not in _reach(successors, 0, without=head):
                bodies.setdefault(head, {head}).update(_reach(before, last, without=head))
    return bodies


def _reach(successors: Sequence[Sequence[int]], start: int, without: int | None) -> set[int]:
    seen, todo = set(), [start]
    while todo:
        i = todo.pop()
        if i != without and i not in seen:
            seen.add(i)
            todo += successors[i]
    return seen


def _loop(code: Sequence[Instruction], successors: Sequence[Sequence[int]], head: int, body: set[int]) -> Loop:
    way = _way_round(code, successors, head, body)
    return Loop(tuple(code[i] for i in sorted(body)), tuple(code[i] for i in way))


def _way_round(
    code: Sequence[Instruction], successors: Sequence[Sequence[int]], head: int, body: set[int]
) -> list[int]:
    order, forward = _forward_edges(successors, head, body)
    products = any(code[i].kind in TENSOR for i in body)
    wanted = (TENSOR if products else _GLOBAL, _EVERY_TIME)

    def value(i: int, before: tuple[int, int, int]) -> tuple[int, int, int]:
        return before[0] + (code[i].kind in wanted[0]), before[1] + (code[i].kind in wanted[1]), before[2] - 1

    best, came_from = {head: value(head, (0, 0, 0))}, {head: head}
    for i in order:  # before its successors
        for j in forward[i]:
            there = value(j, best[i])
            if j not in best or there > best[j]:
                best[j], came_from[j] = there, i
    last = max((i for i in body if head in successors[i] and i in best), key=lambda i: best[i])
    way = [last]
    while way[-1] != head:
        way.append(came_from[way[-1]])
    return way[::-1]


def _forward_edges(
    successors: Sequence[Sequence[int]], head: int, body: set[int]
) -> tuple[list[int], dict[int, list[int]]]:
    """The body in an order in which all edges but those that close a loop lead forward, and these edges."""
    forward: dict[int, list[int]] = {}
    finished: list[int] = []
    open_ones = {head}
    stack = [(head, iter(successors[head]))]
    forward[head] = []
    while stack:
        i, rest = stack[-1]
        j = next(rest, None)
        if j is None:
            stack.pop()
            open_ones.discard(i)
            finished.append(i)
        elif j in body and j not in open_ones:  # to one that is still open: it closes a loop
            forward[i].append(j)
            if j not in forward:
                forward[j] = []
                open_ones.add(j)
                stack.append((j, iter(successors[j])))
    return finished[::-1], forward
