"""The explanation of a kernel, line by line. Each public function is a section; command.py lists them."""

from collections.abc import Iterator, Sequence

from benchmarks.explain import results
from benchmarks.explain.disassembler import NoDisassembly, module_file, sass
from benchmarks.explain.kernels import Case, Family, Operation
from benchmarks.explain.loops import hottest
from benchmarks.explain.occupancy import LIMITS, Occupancy, capability, occupancy
from benchmarks.explain.resources import Kernel
from benchmarks.explain.sass import ORDER, SPILLS, TENSOR, Mix, parse
from benchmarks.result import Run
from benchmarks.roofline import Ceilings, Work

# Cycles for which mma.m16n8k16 (4,096 FLOP) occupies a tensor core at its full rate: 312 TFLOP/s are 512 FLOP a cycle
# for each of 108 x 4 tensor cores at 1.41 GHz, 989 are 1,024 for each of 132 x 4 at 1.83 GHz (NVIDIA's data sheets).
MMA_CYCLES = {"8.0": 8, "9.0": 4}
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def resources(kernels: Sequence[Kernel], family: Family, case: Case) -> list[str]:
    """kernels: one for each architecture."""
    held = [_occupancy(kernel, family, case) for kernel in kernels]
    rows: dict[str, Sequence[object]] = {
        "registers of a thread": [kernel.registers for kernel in kernels],
        "threads of a block": [kernel.threads for kernel in kernels],
        "shared memory of a block, static": [kernel.static_shared for kernel in kernels],
        "shared memory of a block, dynamic": [family.dynamic_shared(kernel, case) for kernel in kernels],
        "stack of a thread": [kernel.stack for kernel in kernels],
        "spills, stored and loaded": [kernel.spills for kernel in kernels],
        "blocks on an SM": [h and h.blocks for h in held],
        "warps on an SM": [h and f"{h.warps} of {h.max_warps}" for h in held],
        "limited by": [h and " and ".join(h.limited_by) for h in held],
    }
    for name in next((one.allowed for one in held if one is not None), {}):
        rows[f"allowed by {name}"] = [h and h.allowed[name] for h in held]
    lines = table("resources", [kernel.architecture for kernel in kernels], rows)
    if any(kernel.threads is None for kernel in kernels):
        lines.append("  occupancy unknown: this build did not note the threads of a block; build again")
    unknown = [kernel.architecture for kernel in kernels if capability(kernel.architecture) not in LIMITS]
    return lines + [f"  occupancy unknown: the limits of {name} are not in occupancy.py" for name in unknown]


def _occupancy(kernel: Kernel, family: Family, case: Case) -> Occupancy | None:
    if kernel.threads is None:
        return None
    shared = kernel.static_shared + family.dynamic_shared(kernel, case)
    return occupancy(kernel.architecture, threads=kernel.threads, registers=kernel.registers, shared=shared)


class Code:
    """A kernel's instructions: all of them, those of its hottest loop, and those of a step, one round of the loop.

    mma_cycles: of a tensor core, for a step; None if it is not known.
    """

    def __init__(self, kernel: Kernel) -> None:
        """Raises NoDisassembly."""
        if kernel.symbol is None:
            raise NoDisassembly("this build did not note the names in the module; build again")
        code = parse(sass(module_file(), kernel.symbol, kernel.architecture), kernel.symbol)
        self.kernel, self.loop = kernel, hottest(code)
        body, step = (self.loop.body, self.loop.step) if self.loop else ((), ())
        self.mixes = [Mix(code), Mix(body), Mix(step)]
        cycles, gemm = MMA_CYCLES.get(capability(kernel.architecture)), [i for i in step if i.kind in TENSOR]
        known = cycles and gemm and all(instruction.opcode.startswith("HMMA.16816") for instruction in gemm)
        self.mma_cycles = cycles * len(gemm) if cycles and known else None


def instructions(kernels: Sequence[Kernel]) -> list[str]:
    """kernels: one for each architecture."""
    try:
        codes = [Code(kernel) for kernel in kernels]
    except NoDisassembly as error:
        return [f"  {error}"]
    mixes = [mix for code in codes for mix in code.mixes]
    shown = [kind for kind in ORDER if kind == SPILLS or any(mix.kinds[kind] for mix in mixes)]
    rows: dict[str, Sequence[object]] = {kind: [mix.kinds[kind] for mix in mixes] for kind in shown}
    rows["others"] = [mix.others.total() for mix in mixes]
    rows["total"] = [mix.total for mix in mixes]
    if any(mix.tensor for mix in mixes):
        rows["tensor core instructions of the total"] = [share(mix.tensor, mix.total) for mix in mixes]
        rows["cycles of a tensor core for them"] = [cell for code in codes for cell in ("", "", code.mma_cycles)]
    columns = [name for code in codes for name in (code.kernel.architecture, "loop", "step")]
    return [*table("instructions of a warp", columns, rows), *_about_loops(codes)]


def _about_loops(codes: Sequence[Code]) -> Iterator[str]:
    loops = [(code.kernel.architecture, code.loop) for code in codes if code.loop is not None]
    if not loops:
        yield "    no loop with tensor core instructions or global memory in it: every instruction runs once"
        return
    yield "    loop: all of the hottest loop; step: one round, the shortest with all tensor core instructions, their"
    yield "    loads and stores"
    if any(code.mma_cycles for code in codes):
        yield "    cycles: mma at its full rate; a scheduler issues one instruction a cycle, for all its warps"
    for architecture, loop in loops:
        others = ", ".join(f"{name} {count}" for name, count in Mix(loop.step).others.most_common(8))
        yield f"    {architecture}: loop at {loop.first:#x}; others in a step: {others}"
        if loop.inner:
            inner = ", ".join(f"{len(one.step)} ({Mix(one.step).tensor} tensor core)" for one in loop.inner)
            yield f"    {architecture}: instructions of loops inside, counted once but run more often: {inner}"


def roofline(kernel: Kernel, family: Family, case: Case, ceilings: Ceilings, source: str) -> list[str]:
    flop, moved = f"{ceilings.gemm_flop_per_s / 1e12:,.4g} TFLOP/s", f"{ceilings.copy_bytes_per_s / 1e12:,.3g} TB/s"
    lines = [
        f"  roofline time at {describe(case)}: arithmetic, not a measurement",
        f"    at {flop} and {moved} ({source})",
    ]
    for variant, work in family.work(kernel, case).items():
        lines.append(f"    {variant + ': ' if variant else ''}{_work(work, ceilings)}")
    if note := family.note(kernel, case):
        lines.append(f"    {note}")
    return lines


def describe(case: Case) -> str:
    """The fields that the command line sets."""
    values = {name: value for name, value in vars(case).items() if name not in ("element_size", "shortest")}
    texts = [",".join(map(str, value)) if isinstance(value, tuple) else f"{value:,}" for value in values.values()]
    return " ".join(f"{name}={text}" for name, text in zip(values, texts, strict=True))


def _work(work: Work, ceilings: Ceilings) -> str:
    gemm, copies = work.flop / ceilings.gemm_flop_per_s, work.bytes / ceilings.copy_bytes_per_s
    if work.flop == 0:
        return f"{amount(work.bytes, 'B')}, no GEMM: {duration(copies)}, limited by memory"
    intensity = f"{work.intensity:,.0f}" if work.intensity >= 100 else f"{work.intensity:.2g}"
    return (
        f"{amount(work.flop, 'FLOP')}, {amount(work.bytes, 'B')}, {intensity} FLOP a byte:"
        f" {duration(gemm)} of GEMM, {duration(copies)} of memory,"
        f" limited by {'the GEMM' if gemm >= copies else 'memory'}"
    )


def measurement(kernel: Kernel, family: Family, case: Case, runs: Sequence[Run], csrc_sha256: str) -> list[str]:
    if not family.operations:
        return ["  measured: no, the benchmarks have no operation that this kernel belongs to"]
    if kernel.dtype not in ("bf16", None):
        return ["  measured: no, on GPUs the benchmarks use bfloat16"]
    lines = [line for operation in family.operations for line in _measured(operation, case, runs, csrc_sha256)]
    return lines or ["  measured: not yet measured on a GPU" + _elsewhere(family.operations[0], runs)]


def _measured(operation: Operation, case: Case, runs: Sequence[Run], csrc_sha256: str) -> Iterator[str]:
    for time in results.find(runs, operation, case):
        run = time.row.run
        stale = ", STALE: csrc/ has changed since" if run.stale(csrc_sha256) else ""
        yield f"  measured: {duration(time.ms / 1e3)} for {operation.name}, {run.origin}{stale}"
        yield (
            f"    the roofline time of that operation is {duration(time.roofline_ms / 1e3)} at that GPU's ceilings:"
            f" {share(time.roofline_ms, time.ms)} of the measured time"
        )


def _elsewhere(operation: Operation, runs: Sequence[Run]) -> str:
    cases = [time.row["case"].items() for time in results.times(runs, operation)]
    listed = list(dict.fromkeys(" ".join(f"{name}={value}" for name, value in case) for case in cases))
    if not listed:
        return ""
    return f" at this shape; measured are {'; '.join(listed[:6])}{' and others' if len(listed) > 6 else ''}"


def amount(number: float, unit: str) -> str:
    """1.92 TFLOP."""
    for factor, prefix in _PREFIXES:
        if number >= factor:
            return f"{number / factor:.3g} {prefix}{unit}" if number < 999.5 * factor else f"{number:,.0f} {unit}"
    return f"{number:.3g} {unit}"


def duration(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def table(title: str, columns: Sequence[str], rows: dict[str, Sequence[object]]) -> list[str]:
    """Lines: a title with the columns' names, then rows by label, cells to the right; None is "?"."""
    lines = [(title, list(columns))]
    for label, cells in rows.items():
        texts = [f"{cell:,}" if isinstance(cell, int) else "?" if cell is None else str(cell) for cell in cells]
        lines.append((f"  {label}", texts))
    widths = [max(map(len, column)) for column in zip(*(cells for _, cells in lines), strict=True)]
    first = max(len(label) for label, _ in lines)
    return ["  " + "  ".join([label.ljust(first), *map(str.rjust, cells, widths)]).rstrip() for label, cells in lines]
