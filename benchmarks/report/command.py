"""Makes benchmarks/REPORT.md, with its pictures, of result files.

Of all results of a GPU the newest run is shown, one that was measured with today's kernels before any other, and the
newest of a CPU where no GPU has measured a suite. Nothing from two runs stands in one table or picture.

example:
  python -m benchmarks report                                # of benchmarks/results/*.json
  python -m benchmarks report results/mine.json --out /tmp/REPORT.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import ceilings, machine, suites
from benchmarks.report import choose, summary, tables
from benchmarks.result import FOLDER, Run, by_case

BENCHMARKS = Path(__file__).parent.parent
MISSING = (
    "**GPU figures are missing**: no result of a GPU is there. What follows was measured on a CPU, in float32, where "
    "the operators are their portable torch backend; it says nothing about the CUDA kernels."
)
HOW = """\
- All implementations of a case are checked against the exact result (float64 where feasible) on poisoned memory; one
  that is wrong is named and has no time. Then they run in the same rounds, in random order: at least 30 rounds, or what
  8 seconds allow (CPU: 12), after a warm-up; on a GPU timed by CUDA events, with the L2 cache overwritten before each
  call; small inputs take turns.
- Times are medians. "/ ours" is the median over the rounds of (time / our time in the same round), in brackets its
  99 % interval; it is called a difference if the interval excludes 1 and the ratio is more than 1 % from it.
- The floor is the larger of FLOP / measured matrix product rate and bytes / measured copy rate. FLOP and bytes are
  useful work alone: what an implementation recomputes, pads or copies does not count. MFU is of the measured rate, too.
- A time marked with ° is hardly more than what the host took to launch the work: another host, or a CUDA graph, would
  change it. A training step is timed alone, from texts to changed weights: what a loop would overlap with the step
  before, such as tokenising, counts.
- Peak memory is above the inputs; of a step it is everything. On a CPU it is the process's, to about a MiB.
"""
TITLES = {"attention": "Soft-masked attention", "contrastive": "InfoNCE", "step": "The training step"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", type=Path, nargs="*", help="results (default: benchmarks/results/*.json)")
    parser.add_argument(
        "--out", type=Path, default=BENCHMARKS / "REPORT.md", help="pictures go to the folder `pictures` beside it"
    )


def main(options: argparse.Namespace) -> int:
    found, bad = choose.runs(options.files or sorted(FOLDER.glob("*.json")))
    for message in bad:
        print(f"left out: {message}", file=sys.stderr)
    if not found:
        print("python -m benchmarks report: no results; python -m benchmarks run makes one", file=sys.stderr)
        return 2
    today = machine.csrc_sha256()
    shown: dict[int, tuple[Run, list[str]]] = {}  # the suites of each run
    for suite in TITLES:
        run = choose.newest(found, suite, today, gpu=True) or choose.newest(found, suite, today, gpu=False)
        if run is not None:
            shown.setdefault(id(run), (run, []))[1].append(suite)
    chosen = sorted(shown.values(), key=lambda pair: pair[0].gpu is None)
    if not chosen:
        print("python -m benchmarks report: the results have no row", file=sys.stderr)
        return 2
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(
        "\n\n".join(_report(chosen, today, options.out.parent / "pictures")) + "\n", encoding="utf-8"
    )
    print(options.out)
    return 0


def _report(chosen: Sequence[tuple[Run, list[str]]], today: str, pictures: Path) -> Iterator[str]:
    yield "# How fast it is, and beside whom"
    yield (
        "Made by `python -m benchmarks report` of what `python -m benchmarks run` measured; not written by hand. "
        "What the words mean stands [at the end](#how-it-was-measured)."
    )
    missing = [name for run, names in chosen if run.gpu is None for name in names]
    if all(run.gpu is None for run, _ in chosen):
        yield MISSING
    elif missing:
        yield f"**No GPU has measured the suites {', '.join(missing)}**: their figures are a CPU's."
    if never := [suite for suite in TITLES if all(suite not in names for _, names in chosen)]:
        yield f"**Not measured at all: {', '.join(never)}.**"
    for number, (run, names) in enumerate(chosen):
        yield from _of_run(run, names, today, pictures, f"{number}-" if number else "")
    yield "## How it was measured"
    yield HOW.rstrip()


def _of_run(run: Run, names: list[str], today: str, pictures: Path, prefix: str) -> Iterator[str]:
    where = run.gpu or "CPU"
    yield f"## In a minute: {where}"
    if run.stale(today):
        yield "> **Stale**: measured with other kernels (csrc/) than those of today. To be measured again."
    if cases := tables.wrong_ours(run, names):
        yield f"> **A result of ours was wrong** in: {cases}."
    if cases := tables.fallbacks(run, names):
        yield f"> **Ours is not the CUDA kernels** but the torch backend in: {cases}."
    yield summary.table(run, names)
    saved = _pictures(run, names, today, pictures, prefix)
    if "top" in saved:
        yield _picture(saved, "top", "Times of the most telling cases, ours beside the peers")
    yield "\n".join(_machine(run, names))
    for name in names:
        yield from _of_suite(run, name, saved)
    if "roofline" in saved:
        yield f"## Roofline: {where}"
        yield _picture(saved, "roofline", "Useful FLOP/s of our operators under the ceilings of the machine")


def _pictures(run: Run, names: list[str], today: str, folder: Path, prefix: str) -> dict[str, Path]:
    """By name; matplotlib is wanted here only, and a machine with a GPU may not have it."""
    from benchmarks.report import plots, style

    saved = {}
    with style.drawing():
        for name, figure in plots.all_of(run, names).items():
            figure.text(1, 0, _origin(run, today), ha="right", va="top", fontsize=7)
            saved[name] = folder / f"{prefix}{name}.svg"
            style.save(figure, saved[name])
            plots.plt.close(figure)
    return saved


def _of_suite(run: Run, suite: str, saved: dict[str, Path]) -> Iterator[str]:
    yield f"## {TITLES[suite]}: {run.gpu or 'CPU'}"
    if stopped := run.stopped(suite):
        yield f"The run is incomplete: {stopped}."
    for name in saved:
        if name.startswith(suite):
            yield _picture(saved, name, f"{TITLES[suite]}: {name}")
    rows = run.rows(suite)
    if suite == "step":
        yield tables.steps(rows)
        if parts := tables.breakdown(rows):
            yield "Where the time goes, of a step measured with marks in it:"
            yield parts
    else:
        for number, (case, some) in enumerate(by_case(rows).items()):
            table = f"**{case}**\n\n{tables.of_case(list(some.values()))}"
            yield table if number == 0 else f"<details><summary>{case}</summary>\n\n{table}\n\n</details>"
    yield "**Not in it, and why**"
    yield tables.absent(run, suite)
    yield "**What the names mean**"
    yield tables.about(run, suite, {i.name: i.about for i in suites.load(suite).implementations})


def _origin(run: Run, today: str) -> str:
    """The line below each picture."""
    where = run.gpu or f"CPU: {run.machine['cpu']}"
    stale = ", STALE: the kernels have changed since" if run.stale(today) else ""
    return f"{where}; {run.machine['date'][:10]}, commit {_commit(run)}{stale}"


def _commit(run: Run) -> str:
    commit = (run.machine["git_commit"] or "unknown")[:12]
    return commit + (" with changes" if run.machine["uncommitted_changes"] else "")


def _machine(run: Run, names: list[str]) -> Iterator[str]:
    facts = run.machine
    backends = facts["conan_fast"]
    yield f"- machine: {run.gpu + ', driver ' + str(facts['driver']) if run.gpu else facts['cpu']}"
    yield f"- measured {facts['date'][:10]}, commit {_commit(run)}, csrc {facts['csrc_sha256'][:12]}, `{run.path.name}`"
    yield (
        f"- torch {facts['torch']}, CUDA {facts['torch_cuda'] or '-'}, cuDNN {facts['cudnn'] or '-'}, Python "
        f"{facts['python']}; kernels compiled for {', '.join(backends['compiled_architectures']) or 'nothing'}"
    )
    packages = [f"{name} {version}" for name, version in facts["packages"].items() if version]
    yield f"- packages: {', '.join(packages) or 'none of the peers'}"
    for name in names:
        yield f"- ceilings before the suite {name}: {ceilings.text(run.ceilings(name))}"


def _picture(saved: dict[str, Path], name: str, alt: str) -> str:
    return f"![{alt}](pictures/{saved[name].name})"
