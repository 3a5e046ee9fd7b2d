"""Explains a compiled kernel: resources, occupancy, machine code, roofline time, measured time."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.attention.cases import Case as AttentionCase
from benchmarks.contrastive.cases import PAPER
from benchmarks.contrastive.cases import Case as ContrastiveCase
from benchmarks.explain import report, results
from benchmarks.explain.kernels import FAMILIES, Case
from benchmarks.explain.resources import DTYPES, Kernel, UnknownKernel, choose, kernels_of
from benchmarks.machine import csrc_sha256
from benchmarks.result import BadResult, Run
from benchmarks.roofline import Ceilings
from conan_fast import build_info

PAPER_HEAD_DIM, PAPER_DIMS = 112, PAPER[3584]
# The rates that docs/contrastive_kernels.md calculates with.
DOCS = Ceilings("bfloat16", gemm_flop_per_s=770e12, copy_bytes_per_s=4.3e12, launch_s=0.0)
DOCS_SOURCE = "docs/contrastive_kernels.md: as measured on an H200 before"

EPILOG = """\
examples: the forward kernel as Hopper runs it; the scores of a batch of 4,096 pairs

  python -m benchmarks explain sm80_forward --head-dim 112 --architecture sm_90a
  python -m benchmarks explain sm80_scores --pairs 4096 --negatives 7

How to read it: "limited by" names the resource that keeps more warps from an SM. In a step, the share of tensor core
instructions says how much is issued besides them. The roofline time says whether GEMM or memory is the limit, the
measured time how close to its roofline time the whole operation is.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("kernel", nargs="?", help='a name or part of one, such as "sm80_backward<112"; none: a list')
    parser.add_argument("--list", action="store_true", help="list the kernels")
    choice = parser.add_argument_group("which of its instances")
    choice.add_argument("--architecture", metavar="SM", help="such as sm_90a (default: all compiled ones)")
    choice.add_argument("--head-dim", type=int, metavar="D", help="of attention (default: all compiled ones)")
    choice.add_argument("--dtype", choices=list(DTYPES.values()), help="(default: bf16 if the kernel has it)")
    attention, contrastive = (parser.add_argument_group(f"the shape of {name}") for name in ("attention", "InfoNCE"))
    for group, name, metavar, default, what in (
        (attention, "batch", "B", 2, "sequences"),
        (attention, "length", "L", 8192, "tokens of a sequence"),
        (attention, "heads", "H", 32, "query heads"),
        (attention, "kv-heads", "H", 8, "K/V heads"),
        (contrastive, "pairs", "N", 16384, "queries and positives"),
        (contrastive, "negatives", "K", 0, "hard negatives of a pair"),
        (contrastive, "dim", "D", PAPER_DIMS[-1], "elements of a vector"),
    ):
        group.add_argument(f"--{name}", type=int, default=default, metavar=metavar, help=f"{what} ({default})")
    contrastive.add_argument("--dims", type=_dims, metavar="d,...", help="Matryoshka dims (the paper's, up to D)")
    ceilings = parser.add_argument_group("ceilings, and measured times")
    ceilings.add_argument("--tflops", type=float, help="of a large GEMM, in place of a result's or the docs'")
    ceilings.add_argument("--tb-per-s", type=float, help="of a large copy, in place of a result's or the docs'")
    ceilings.add_argument("--results", type=Path, nargs="+", metavar="FILE", help="(benchmarks/results/*.json)")


def _dims(text: str) -> tuple[int, ...]:
    dims = tuple(map(int, text.split(",")))
    if list(dims) != sorted(set(dims)) or dims[0] < 1:
        raise argparse.ArgumentTypeError(f"must be increasing, such as 256,512,1024, got {text}")
    return dims


def main(options: argparse.Namespace) -> int:
    """Prints the explanation. Returns 2 if what was asked for does not exist."""
    facts = build_info(kernels=True)
    if not facts["kernels"]:
        reason = facts["missing_backends"].get("cuda", "the build lists none")
        print(f"no compiled kernels found: {reason}", file=sys.stderr)
        return 2
    kernels = kernels_of(facts["kernels"])
    if options.list or not options.kernel:
        print("\n".join(listing(kernels)))
        return 0
    try:
        explanation = explain(kernels, options)
    except (UnknownKernel, BadResult, argparse.ArgumentTypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(explanation))
    return 0


def listing(kernels: Sequence[Kernel]) -> list[str]:
    """A line for each family."""
    lines = [f"compiled for {', '.join(sorted({kernel.architecture for kernel in kernels}))}:"]
    for family in [*FAMILIES, *sorted({kernel.family for kernel in kernels} - set(FAMILIES))]:
        same = [kernel for kernel in kernels if kernel.family == family]
        dims = sorted({kernel.head_dim for kernel in same if kernel.head_dim})
        dtypes = sorted({kernel.dtype for kernel in same if kernel.dtype})
        facts = "; ".join(filter(None, [f"head_dim {', '.join(map(str, dims))}" if dims else "", " ".join(dtypes)]))
        purpose = FAMILIES[family].purpose if family in FAMILIES else "?"
        if same:
            lines.append(f"  {family:18} {purpose}" + (f" [{facts}]" if facts else ""))
    return lines


def explain(kernels: Sequence[Kernel], options: argparse.Namespace) -> list[str]:
    """Raises UnknownKernel, BadResult, ArgumentTypeError."""
    filters = {name: getattr(options, name) for name in ("architecture", "head_dim", "dtype")}
    runs = results.load(options.results)
    lines: list[str] = []
    for name, instances in choose(kernels, options.kernel, **filters).items():
        kernel = instances[0]
        lines += ["", name] if lines else [name]
        if kernel.family not in FAMILIES:
            lines.append("  benchmarks/explain/kernels.py does not know this kernel: no roofline time")
            lines += report.instructions(instances)
            continue
        family = FAMILIES[kernel.family]
        case = case_of(kernel, family.suite, options)
        lines.append(f"  {family.purpose}")
        lines += ["", *report.resources(instances, family, case)]
        lines += ["", *report.instructions(instances)]
        lines += ["", *report.roofline(kernel, family, case, *ceilings_of(family.suite, runs, options))]
        lines += report.measurement(kernel, family, case, runs, csrc_sha256())
    return lines


def case_of(kernel: Kernel, suite: str, options: argparse.Namespace) -> Case:
    """In 16 bits. Raises ArgumentTypeError."""
    for name in ("batch", "length", "heads", "kv_heads", "pairs", "dim", "negatives"):
        least, given = int(name != "negatives"), getattr(options, name)
        if given < least:
            raise argparse.ArgumentTypeError(f"--{name.replace('_', '-')}: must be at least {least}, got {given}")
    if suite == "attention":
        if options.heads % options.kv_heads:
            raise argparse.ArgumentTypeError("--heads must be a multiple of --kv-heads")
        head_dim = kernel.head_dim or options.head_dim or PAPER_HEAD_DIM
        return AttentionCase(options.batch, options.length, head_dim, options.heads, options.kv_heads)
    dims = options.dims or tuple(dim for dim in PAPER_DIMS if dim <= options.dim) or (options.dim,)
    if dims[-1] > options.dim:
        raise argparse.ArgumentTypeError(f"--dims go up to {dims[-1]}, --dim is {options.dim}")
    return ContrastiveCase(options.pairs, options.negatives, options.dim, dims)


def ceilings_of(suite: str, runs: Sequence[Run], options: argparse.Namespace) -> tuple[Ceilings, str]:
    """Those of the options, else of the newest GPU result, else of the docs, and where they are from."""
    ceilings, source = results.ceilings(runs, suite) or (DOCS, DOCS_SOURCE)
    names = []
    for name, field in (("tflops", "gemm_flop_per_s"), ("tb_per_s", "copy_bytes_per_s")):
        if (given := getattr(options, name)) is not None:
            ceilings = replace(ceilings, **{field: given * 1e12})
            names.append(f"--{name.replace('_', '-')}")
    return ceilings, " and ".join(names if len(names) == 2 else [*names, source])
