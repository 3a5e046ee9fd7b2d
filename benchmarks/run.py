"""Measures the suites, each in a process of its own.

First the ceilings of the machine (copy, matrix product, launch), then case after case, the most telling first: every
implementation is checked against the exact result - a wrong one is named and has no time - and all of a case are timed
in the same rounds, in random order. The result file is valid after every row, so a run that is stopped, by the budget
or by Ctrl-C, is a smaller one. Without a GPU small cases run on the CPU.

examples:
  python -m benchmarks run                                           # everything, 8 minutes
  python -m benchmarks run --suite attention --where length=8192 head_dim=112
  python -m benchmarks run --suite contrastive --only ours three_products eager

exit status: 0 measured; 1 a result of ours was wrong or a suite died; 130 stopped by Ctrl-C
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, result, suites
from benchmarks.measure import measure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--suite",
        type=_suites,
        default=list(suites.NAMES),
        metavar="NAMES",
        help=f"of {','.join(suites.NAMES)} (default: all)",
    )
    parser.add_argument(
        "--budget-minutes", type=float, default=8.0, help="of all suites together, divided evenly (default: 8)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="result file; suites can be added to it later (default: benchmarks/results/GPU-TIME.json)",
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], help="default: cuda if there is one")
    parser.add_argument(
        "--where", nargs="+", default=[], metavar="FIELD=VALUE", help="only cases with these, such as length=8192"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these implementations")
    parser.add_argument("--without", nargs="+", default=[], metavar="NAME", help="not these implementations")
    # A suite in this process; the run calls itself with it.
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)


def _suites(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    if not names or not set(names) <= set(suites.NAMES):
        raise argparse.ArgumentTypeError(f"{text!r}: takes names of {', '.join(suites.NAMES)}, separated by commas")
    return list(dict.fromkeys(names))


def main(options: argparse.Namespace) -> int:
    if options.budget_minutes <= 0:
        return fail(f"--budget-minutes: must be positive, got {options.budget_minutes:g}")
    if any("=" not in item for item in options.where):
        return fail(f"--where: takes FIELD=VALUE, got {' '.join(options.where)}")
    if options.here:
        (name,) = options.suite
        return measure(
            suites.load(name),
            torch.device(options.device),
            options.out,
            budget_minutes=options.budget_minutes,
            where=options.where,
            only=options.only,
            without=options.without,
        )
    gpu = torch.cuda.is_available() and options.device != "cpu"
    if options.device == "cuda" and not gpu:
        return fail("--device cuda: torch sees no CUDA device")
    out = (options.out or _default_file(torch.cuda.get_device_name() if gpu else "cpu")).absolute()
    if out.exists() and (
        reason := _cannot_add(out, options.suite, machine.facts(torch.device("cuda" if gpu else "cpu")))
    ):
        return fail(f"--out: {out} exists, {reason}")
    return _in_processes(options, out, gpu)


def _cannot_add(out: Path, names: Sequence[str], facts: dict[str, Any]) -> str | None:
    """Why the suites cannot be added to a result; each is compared within itself, but one machine speaks for all."""
    try:
        run = result.read(out)
    except result.BadResult as error:
        return str(error)
    if both := sorted(set(names) & set(run.suites)):
        return f"and has {', '.join(both)}; results are not overwritten"
    changed = [key for key, value in facts.items() if key != "date" and run.machine.get(key) != value]
    return f"measured with another {', '.join(changed)}" if changed else None


def fail(message: str) -> int:
    print(f"python -m benchmarks: {message}", file=sys.stderr)
    return 2


def _default_file(device_name: str) -> Path:
    name = re.sub(r"[^a-z0-9]+", "-", device_name.lower())
    return result.FOLDER / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.json"


def _in_processes(options: argparse.Namespace, out: Path, gpu: bool) -> int:
    """One process a suite: one that dies takes no other along, and each starts with empty memory."""
    end, status = time.monotonic() + 60 * options.budget_minutes, 0
    environment = dict(os.environ)
    if not gpu:
        print("No GPU: small cases on the CPU. GPU FIGURES ARE MISSING.", flush=True)
        # torch and compiled peers bring an OpenMP runtime each, whose threads would spin against the other's.
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for number, name in enumerate(options.suite):
        suite_end = time.monotonic() + (end - time.monotonic()) / (len(options.suite) - number)
        ended = _suite(options, name, out, suite_end, environment, "cuda" if gpu else "cpu")
        status = 130 if ended == 130 else status or int(ended != 0)
        if ended == 130:
            break
    if out.exists():
        print(f"\n{out}\npython -m benchmarks report makes tables and pictures of it")
    return status


def _suite(
    options: argparse.Namespace, name: str, out: Path, end: float, environment: dict[str, str], device: str
) -> int:
    """The exit status of one suite; where it dies of an implementation it goes on without it."""
    without, status = list(options.without), 0
    while True:
        minutes = max(0.01, (end - time.monotonic()) / 60)
        command = [sys.executable, "-m", "benchmarks", "run", "--here", "--suite", name, "--out", str(out)]
        command += ["--budget-minutes", str(minutes), "--device", device]
        for option, values in (("where", options.where), ("only", options.only), ("without", without)):
            command += [f"--{option}", *values] if values else []
        ended = _wait(subprocess.Popen(command, env=environment, cwd=Path(__file__).parent.parent))
        death, culprit = (None, None) if ended == 130 else _death(out, name, ended)
        if death is None:
            return status or ended
        print(f"{name}: {death}", file=sys.stderr)
        status = 1
        if culprit is None or culprit in without or time.monotonic() > end:
            return status
        print(f"{name}: goes on without {culprit}", file=sys.stderr)
        without.append(culprit)


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Its exit status; Ctrl-C reaches the child, too, which then writes down what it has."""
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def _death(out: Path, name: str, status: int) -> tuple[str | None, str | None]:
    """How the suite ended, if before its end, and with which implementation: it gets a row that says so."""
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"died with exit status {status}"
    try:
        content = result.read(out).content
        suite = content["suites"][name]
    except (result.BadResult, KeyError):
        return (how if status else None), None
    if suite["now"] is None:
        return None, None
    death, culprit = f"{how} in {suite['now']}", suite["culprit"]
    if culprit is not None:
        wrong, reason = culprit["role"] == "ours", f"the process {how} with it"
        row = result.without_time(suite["case"], culprit["name"], culprit["role"], wrong=wrong, reason=reason)
        suite["rows"] = [*suite["rows"][: suite["rows_done"]], row]
        suite["rows_done"] += 1
    suite |= {"stopped": death, "now": None, "culprit": None}
    result.write(out, content)
    return death, culprit and culprit["name"]
