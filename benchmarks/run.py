"""Measures the suites, each in a process of its own.

First the rates that the machine reaches (copy, GEMM, launch), then case after case, the most informative first. Every
implementation is checked against the exact result: a wrong one is named and has no time. Then all implementations of a
case are timed in the same rounds, in random order. The result file is valid after every row: a run that is stopped, by
the time budget or by Ctrl-C, keeps what it has. Without a GPU small cases run on the CPU.

examples:
  python -m benchmarks run                                           # everything, 8 minutes
  python -m benchmarks run --suite attention --where length=8192 head_dim=112
  python -m benchmarks run --suite contrastive --only ours three_gemms eager
on a CPU, cases that run on request only:
  python -m benchmarks run --suite attention --where batch=256      # packed against padded batches
  python -m benchmarks run --suite contrastive --where pairs=8192 --slowest 600 --budget-minutes 90

exit status: 0 measured; 1 a result of ours was wrong, or the process of a suite died; 2 bad arguments; 130 Ctrl-C
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import machine, result, rounds
from benchmarks.record import INTERRUPTED, OURS_WRONG, Selection, measure_suite
from benchmarks.result import Json
from benchmarks.suite import SUITES, load_suite


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    suites, slowest = ",".join(SUITES), "{cuda:g} on a GPU, {cpu:g} on a CPU".format_map(rounds.SLOWEST)
    add("--suite", type=_suites, default=suites, metavar="NAMES", help=f"separated by commas (default: {suites})")
    add("--budget-minutes", type=float, default=8.0, metavar="M", help="for all suites, divided evenly (default: 8)")
    out = "result file, or one of the same machine and sources to add suites to"
    add("--out", type=Path, metavar="FILE", help=f"{out} (default: benchmarks/results/DEVICE-TIME.json)")
    add("--device", choices=["cuda", "cpu"], help="default: cuda if there is a GPU")
    add("--where", nargs="+", default=[], metavar="FIELD=VALUE", help="only such cases, for example length=8192")
    add("--only", nargs="+", default=[], metavar="NAME", help="only these implementations")
    add("--without", nargs="+", default=[], metavar="NAME", help="not these implementations")
    add("--slowest", type=float, metavar="SECONDS", help=f"skip what takes longer for one call (default: {slowest})")
    add("--here", action="store_true", help=argparse.SUPPRESS)  # in this process: the run calls itself with it


def _suites(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    if not names or not set(names) <= set(SUITES):
        raise argparse.ArgumentTypeError(f"{text!r}: expected names of {', '.join(SUITES)}, separated by commas")
    return list(dict.fromkeys(names))


def main(options: argparse.Namespace) -> int:
    if options.budget_minutes <= 0:
        return fail(f"--budget-minutes: must be positive, got {options.budget_minutes:g}")
    if any("=" not in item for item in options.where):
        return fail(f"--where: expected FIELD=VALUE, got {' '.join(options.where)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        return fail("--device cuda: torch sees no CUDA device")
    if options.device is None:
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(options.device)
    if options.here:
        deadline = time.monotonic() + 60 * options.budget_minutes
        limits = rounds.Progress(deadline=deadline, slowest=options.slowest or rounds.SLOWEST[device.type])
        selection = Selection(options.where, options.only, options.without)
        return measure_suite(load_suite(*options.suite), device, options.out, selection, limits)
    options.out = (options.out or _default_file(device)).absolute()
    if options.out.exists() and (reason := _cannot_add(options.out, options.suite, machine.facts(device))):
        return fail(f"--out: {options.out} exists, {reason}")
    return _in_processes(options)


def _cannot_add(out: Path, names: Sequence[str], facts: Json) -> str | None:
    """Why the suites cannot be added to a result. A result is of one machine, and of one state of the sources."""
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


def _default_file(device: torch.device) -> Path:
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    return result.FOLDER / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}-{time.strftime('%Y%m%d-%H%M%S')}.json"


def _in_processes(options: argparse.Namespace) -> int:
    """One process for each suite: if one dies the others go on, and each starts with empty memory."""
    end, status = time.monotonic() + 60 * options.budget_minutes, 0
    environment = dict(os.environ)
    if options.device == "cpu":
        print("No GPU: small cases on the CPU. GPU FIGURES ARE MISSING.", flush=True)
        # torch and compiled peers bring an OpenMP runtime each, whose threads would spin against the other's.
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    environment.setdefault("KINETO_LOG_LEVEL", "99")  # else torch's profiler prints its start and end
    for number, name in enumerate(options.suite):
        minutes = max(0.01, (end - time.monotonic()) / 60 / (len(options.suite) - number))
        process = subprocess.Popen(_command(options, name, minutes), env=environment, cwd=Path(__file__).parent.parent)
        ended = _wait(process)
        if ended == INTERRUPTED:
            status = INTERRUPTED
            break
        if ended not in (0, OURS_WRONG):
            print(f"{name}: {note_death(options.out, name, ended)}", file=sys.stderr)
        status = status or int(ended != 0)
    if options.out.exists():
        print(f"\n{options.out}\npython -m benchmarks report makes tables and pictures of it")
    return status


def _command(options: argparse.Namespace, name: str, minutes: float) -> list[str]:
    command = [sys.executable, "-m", "benchmarks", "run", "--here", "--suite", name, "--out", str(options.out)]
    command += ["--budget-minutes", str(minutes), "--device", options.device]
    command += ["--slowest", str(options.slowest)] if options.slowest else []
    for option in ("where", "only", "without"):
        command += [f"--{option}", *getattr(options, option)] if getattr(options, option) else []
    return command


def _wait(process: "subprocess.Popen[bytes]") -> int:
    """The exit status. Ctrl-C reaches the child too, which then writes what it has."""
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def note_death(out: Path, name: str, status: int) -> str:
    """How the process of a suite ended, which is also written to the result file."""
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
    try:
        content = result.read(out).content
        suite = content["suites"][name]
    except (result.BadResult, KeyError):
        return f"the process {how} before its first row"
    suite["stopped"] = f"the process {how} during: {suite['stopped']}"
    result.write(out, content)
    return str(suite["stopped"])
