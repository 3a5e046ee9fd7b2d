"""The explanation of a kernel, line by line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.explain import measured
from benchmarks.explain.disassembler import NoDisassembly, module_file, sass
from benchmarks.explain.kernels import Family, Operation
from benchmarks.explain.loops import Loop, hottest
from benchmarks.explain.occupancy import LIMITS, Occupancy, capability, occupancy
from benchmarks.explain.resources import Kernel
from benchmarks.explain.sass import ORDER, SPILLS, TENSOR, Mix, parse
from benchmarks.explain.shapes import Shape
from benchmarks.explain.text import amount, duration, share, table
from benchmarks.floors import Ceilings, Work

# Cycles for which mma.m16n8k16 (4,096 FLOP) occupies a tensor core at its full rate: 312 TFLOP/s are 512 FLOP a cycle
# for each of 108 x 4 tensor cores at 1.41 GHz, 989 are 1,024 for each of 132 x 4 at 1.83 GHz (NVIDIA's data sheets).
MMA_CYCLES = {"8.0": 8, "9.0": 4}


def resources(kernels: Sequence[Kernel], family: Family, shape: Shape) -> list[str]:
    """kernels: one for each architecture."""
    held = [_occupancy(kernel, family, shape) for kernel in kernels]

    def row(label: str, cells: Sequence[object]) -> tuple[str, list[str]]:
        return label, [f"{cell:,}" if isinstance(cell, int) else "?" if cell is None else str(cell) for cell in cells]

    lines = table(
        "resources",
        [kernel.architecture for kernel in kernels],
        [
            row("registers of a thread", [kernel.registers for kernel in kernels]),
            row("threads of a block", [kernel.threads for kernel in kernels]),
            row("shared memory of a block, static", [kernel.static_shared for kernel in kernels]),
            row("shared memory of a block, dynamic", [family.dynamic_shared(kernel, shape) for kernel in kernels]),
            row("stack of a thread", [kernel.stack for kernel in kernels]),
            row("spills, stored and loaded", [kernel.spills for kernel in kernels]),
            row("blocks on an SM", [h and h.blocks for h in held]),
            row("warps on an SM", [h and f"{h.warps} of {h.max_warps}" for h in held]),
            row("limited by", [h and " and ".join(h.limited_by) for h in held]),
            *[row(f"allowed by {name}", [h and h.allowed[name] for h in held]) for name in _allowed(held)],
        ],
    )
    if any(kernel.threads is None for kernel in kernels):
        lines.append("  occupancy unknown: this build did not note the threads of a block; build again")
    for kernel in kernels:
        if capability(kernel.architecture) not in LIMITS:
            lines.append(f"  occupancy unknown: no limits of {kernel.architecture} here")
    return lines


def _allowed(held: Sequence[Occupancy | None]) -> list[str]:
    return next((list(one.allowed) for one in held if one is not None), [])


def _occupancy(kernel: Kernel, family: Family, shape: Shape) -> Occupancy | None:
    if kernel.threads is None:
        return None
    shared = kernel.static_shared + family.dynamic_shared(kernel, shape)
    return occupancy(kernel.architecture, threads=kernel.threads, registers=kernel.registers, shared=shared)


@dataclass(frozen=True)
class Code:
    """A kernel's instructions in all, and its hottest loop."""

    kernel: Kernel
    mix: Mix
    loop: Loop | None

    @classmethod
    def of(cls, kernel: Kernel) -> Code:
        """Raises NoDisassembly."""
        if kernel.symbol is None:
            raise NoDisassembly("this build did not note the names in the module; build again")
        code = parse(sass(module_file(), kernel.symbol, kernel.architecture), kernel.symbol)
        return cls(kernel, Mix.of(code), hottest(code))

    @property
    def mixes(self) -> list[Mix]:
        """Of everything, of the loop, and of a step."""
        nothing = Mix.of(())
        return [self.mix, *([Mix.of(self.loop.body), Mix.of(self.loop.step)] if self.loop else [nothing, nothing])]

    @property
    def mma_cycles(self) -> int | None:
        """Of a tensor core, for a step; None if it is not known."""
        cycles, step = MMA_CYCLES.get(capability(self.kernel.architecture)), self.loop.step if self.loop else ()
        products = [instruction for instruction in step if instruction.kind in TENSOR]
        if cycles is None or not products or any(not p.opcode.startswith("HMMA.16816") for p in products):
            return None
        return cycles * len(products)


def instructions(kernels: Sequence[Kernel]) -> list[str]:
    try:
        codes = [Code.of(kernel) for kernel in kernels]
    except NoDisassembly as error:
        return [f"  {error}"]
    mixes = [mix for code in codes for mix in code.mixes]
    rows = [
        (kind, [f"{mix.kinds[kind]:,}" for mix in mixes])
        for kind in ORDER
        if kind == SPILLS or any(mix.kinds[kind] for mix in mixes)
    ]
    rows.append(("others", [f"{mix.others.total():,}" for mix in mixes]))
    rows.append(("total", [f"{mix.total:,}" for mix in mixes]))
    if any(mix.tensor for mix in mixes):
        rows.append(("tensor core products of the total", [share(mix.tensor, mix.total) for mix in mixes]))
        cycles = [["", "", f"{code.mma_cycles:,}" if code.mma_cycles else "?"] for code in codes]
        rows.append(("cycles of a tensor core for them", [cell for cells in cycles for cell in cells]))
    columns = [name for code in codes for name in (code.kernel.architecture, "loop", "step")]
    return [*table("instructions of a warp", columns, rows), *_about_loops(codes)]


def _about_loops(codes: Sequence[Code]) -> list[str]:
    loops = [code for code in codes if code.loop is not None]
    if not loops:
        return ["    no loop with tensor core products or global memory in it: all of it runs once"]
    lines = [
        "    loop: all of the hottest loop; step: one round, the shortest with all products, their loads and stores",
        *(["    cycles: mma at its full rate; a scheduler issues one instruction a cycle, for all its warps"]
          if any(code.mma_cycles for code in codes) else []),
    ]  # fmt: skip
    for code in loops:
        assert code.loop is not None
        others = ", ".join(f"{name} {count}" for name, count in Mix.of(code.loop.step).others.most_common(8))
        lines.append(f"    {code.kernel.architecture}: loop at {code.loop.first:#x}; others in a step: {others}")
        if code.loop.inner:
            inner = ", ".join(f"{len(one.step)} with {Mix.of(one.step).tensor} products" for one in code.loop.inner)
            lines.append(f"    {code.kernel.architecture}: loops inside, counted once but run more often: {inner}")
    return lines


def floor(kernel: Kernel, family: Family, shape: Shape, ceilings: Ceilings, source: str) -> list[str]:
    lines = [
        f"  floor at {shape}: arithmetic, not a measurement",
        f"    at {ceilings.product_flop_per_s / 1e12:,.4g} TFLOP/s and {ceilings.copy_bytes_per_s / 1e12:,.3g} TB/s"
        f" ({source})",
    ]
    for label, work in family.floor(kernel, shape).items():
        lines.append(f"    {label + ': ' if label else ''}{_work(work, ceilings)}")
    if note := family.note(kernel, shape):
        lines.append(f"    {note}")
    return lines


def _work(work: Work, ceilings: Ceilings) -> str:
    products, copies = work.flop / ceilings.product_flop_per_s, work.bytes / ceilings.copy_bytes_per_s
    if work.flop == 0:
        return f"{amount(work.bytes, 'B')}, no products worth counting: {duration(copies)}, memory binds"
    return (
        f"{amount(work.flop, 'FLOP')}, {amount(work.bytes, 'B')}, {_number(work.intensity)} FLOP a byte:"
        f" {duration(products)} of products, {duration(copies)} of memory,"
        f" {'products bind' if products >= copies else 'memory binds'}"
    )


def _number(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.2g}"


def measurement(
    kernel: Kernel, family: Family, shape: Shape, documents: Sequence[measured.Document], csrc_sha256: str
) -> list[str]:
    if not family.operations:
        return ["  measured: no, the benchmarks have no operation that this kernel belongs to"]
    if kernel.dtype not in ("bf16", None):
        return ["  measured: no, on GPUs the benchmarks take bfloat16"]
    lines = [line for operation in family.operations for line in _measured(operation, shape, documents, csrc_sha256)]
    if lines:
        return lines
    return ["  measured: not yet measured on a GPU" + _elsewhere(family.operations[0], documents)]


def _measured(
    operation: Operation, shape: Shape, documents: Sequence[measured.Document], csrc_sha256: str
) -> list[str]:
    work = operation.work(shape)
    lines = []
    for found in measured.find(documents, operation, shape, csrc_sha256):
        lines.append(
            f"  measured: {duration(found.seconds)} for {operation.name}, {found.origin}"
            + (", STALE: csrc has changed since" if found.stale else "")
        )
        if found.ceilings is not None:
            least = work.seconds(found.ceilings)
            lines.append(
                f"    that operation's useful work takes {duration(least)} at that GPU's ceilings:"
                f" {share(least, found.seconds)} of the measured time"
            )
    return lines


def _elsewhere(operation: Operation, documents: Sequence[measured.Document]) -> str:
    cases = measured.cases(documents, operation)
    if not cases:
        return ""
    listed = "; ".join(" ".join(f"{name}={value}" for name, value in case.items()) for case in cases[:6])
    return f" at this shape; measured are {listed}{' and others' if len(cases) > 6 else ''}"
