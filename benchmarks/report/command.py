"""Writes benchmarks/REPORT.md and its pictures from result files.

For each suite the report shows one run: the newest on a GPU, or on a CPU if no GPU has measured the suite. A run with
the present kernel sources comes before any other. No table or picture mixes two runs.

example:
  python -m benchmarks report                                # of benchmarks/results/*.json
  python -m benchmarks report results/mine.json --out /tmp/REPORT.md
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import machine
from benchmarks.report import tables
from benchmarks.report.tables import TITLES
from benchmarks.result import FOLDER, BadResult, Run, by_case, read
from benchmarks.suite import load_suite

BENCHMARKS = Path(__file__).parent.parent
MISSING = (
    "**No GPU results.** All figures below were measured on a CPU in float32, with the portable torch backend of the "
    "operators. They say nothing about the CUDA kernels."
)
CAPTIONS = {
    "top": "Times of the first case of each suite, ours and the peers",
    "roofline": "Useful FLOP/s of our operators under the measured ceilings",
    "contrastive": "InfoNCE: time and peak memory over the number of pairs",
    "step": "Training step: time by part",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", type=Path, nargs="*", help="result files (default: benchmarks/results/*.json)")
    parser.add_argument(
        "--out", type=Path, default=BENCHMARKS / "REPORT.md", help="pictures go to the folder `pictures` beside it"
    )


def main(options: argparse.Namespace) -> int:
    runs = []
    for path in options.files or sorted(FOLDER.glob("*.json")):
        try:
            runs.append(read(path))
        except BadResult as error:
            print(f"ignored: {error}", file=sys.stderr)
    today = machine.csrc_sha256()
    shown: dict[int, tuple[Run, list[str]]] = {}  # the suites of each run
    for suite in TITLES:
        if (run := choose(runs, suite, today)) is not None:
            shown.setdefault(id(run), (run, []))[1].append(suite)
    if not shown:
        print("python -m benchmarks report: no results; python -m benchmarks run measures some", file=sys.stderr)
        return 2
    chosen = sorted(shown.values(), key=lambda pair: pair[0].gpu is None)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    sections = report(chosen, today, options.out.parent / "pictures")
    options.out.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    print(options.out)
    return 0


def choose(runs: Sequence[Run], suite: str, csrc_sha256: str) -> Run | None:
    """Of the runs with rows of the suite one on a GPU, with the present kernel sources, the newest, in this order."""
    newest = sorted(runs, key=lambda run: run.machine["date"], reverse=True)
    of_suite = [run for run in newest if run.rows(suite)]
    return min(of_suite, key=lambda run: (run.gpu is None, run.stale(csrc_sha256)), default=None)


def report(chosen: Sequence[tuple[Run, list[str]]], today: str, pictures: Path) -> Iterator[str]:
    yield "# Benchmark report"
    yield (
        "Written by `python -m benchmarks report` from results of `python -m benchmarks run`; do not edit. "
        "[Method](#method) explains the terms."
    )
    cpu_suites = [name for run, names in chosen if run.gpu is None for name in names]
    if all(run.gpu is None for run, _ in chosen):
        yield MISSING
    elif cpu_suites:
        yield f"**No GPU results of: {', '.join(cpu_suites)}.** Their figures were measured on a CPU."
    if never := [suite for suite in TITLES if all(suite not in names for _, names in chosen)]:
        yield f"**Not measured at all: {', '.join(never)}.**"
    for number, (run, names) in enumerate(chosen):
        yield from _of_run(run, names, today, pictures, f"{number}-" if number else "")
    yield "## Method"
    yield Path(__file__).with_name("method.md").read_text(encoding="utf-8").rstrip()


def _of_run(run: Run, names: list[str], today: str, pictures: Path, prefix: str) -> Iterator[str]:
    where = run.gpu or "CPU"
    yield f"## Summary: {where}"
    if run.stale(today):
        unused = "" if run.gpu else " The torch backend, which was measured, does not use them."
        changed = f"the kernel sources (csrc/) have changed since.{unused}"
        yield f"> **Measured at an earlier commit**, {run.commit}: {changed}"
    if cases := tables.wrong_ours(run, names):
        yield f"> **A result of ours was wrong** in: {cases}."
    if cases := tables.fallbacks(run, names):
        yield f"> **Ours is not the CUDA kernels** but the torch backend in: {cases}."
    yield tables.summary(run, names)
    saved = _pictures(run, names, today, pictures, prefix)
    if "top" in saved:
        yield f"![{CAPTIONS['top']}](pictures/{saved['top'].name})"
        yield f"{CAPTIONS['top']}. {run.origin}."
    yield "\n".join(_machine(run, names))
    captions = {name: CAPTIONS.get(name) or f"{name}: time and rate over the length" for name in saved if name != "top"}
    if others := [f"- `pictures/{saved[name].name}`: {caption}" for name, caption in captions.items()]:
        untracked = "Further pictures are not tracked by git; `python -m benchmarks report` writes them:"
        yield "\n".join([untracked, "", *others])
    for name in names:
        yield from _of_suite(run, name)


def _pictures(run: Run, names: list[str], today: str, folder: Path, prefix: str) -> dict[str, Path]:
    """By name; matplotlib is needed only here, and a machine with a GPU may not have it."""
    from benchmarks.report import plots, style

    saved, origin = {}, run.origin + (" (csrc/ has changed since)" if run.stale(today) else "")
    with style.drawing():
        for name, figure in plots.all_of(run, names).items():
            figure.supxlabel(origin, x=1, ha="right", fontsize=7)
            saved[name] = folder / f"{prefix}{name}.svg"
            style.save(figure, saved[name])
            plots.plt.close(figure)
    return saved


def _of_suite(run: Run, suite: str) -> Iterator[str]:
    yield f"## {TITLES[suite]}: {run.gpu or 'CPU'}"
    if stopped := run.suites[suite]["stopped"]:
        yield f"The run is incomplete; stopped: {stopped}."
    rows = run.rows(suite)
    if suite == "step":
        yield "The shares of the parts, from attention on, are from an extra step that was instrumented."
        yield tables.steps(rows)
    else:
        for number, (case, some) in enumerate(by_case(rows).items()):
            table = f"**{case}**\n\n{tables.of_case(some)}"
            yield table if number == 0 else f"<details><summary>{case}</summary>\n\n{table}\n\n</details>"
    yield "**Not measured**"
    yield tables.absent(run, suite)
    yield "**Implementations**"
    yield tables.about(run, suite, {i.name: i.about for i in load_suite(suite).implementations})


def _machine(run: Run, names: list[str]) -> Iterator[str]:
    facts = run.machine
    cuda, cudnn = facts["torch_cuda"] or "-", facts["cudnn"] or "-"
    yield f"- machine: {run.gpu + ', driver ' + str(facts['driver']) if run.gpu else facts['cpu']}"
    yield f"- measured {facts['date'][:10]}, commit {run.commit}, csrc {facts['csrc_sha256'][:12]}, `{run.path.name}`"
    yield f"- torch {facts['torch']}, CUDA {cuda}, cuDNN {cudnn}, Python {facts['python']}"
    yield f"- kernels compiled for {', '.join(facts['conan_fast']['compiled_architectures']) or 'nothing'}"
    packages = [f"{name} {version}" for name, version in facts["packages"].items() if version]
    yield f"- packages: {', '.join(packages) or 'none of the peers'}"
    for name in names:
        yield f"- ceilings before the suite {name}: {run.ceilings(name)}"
