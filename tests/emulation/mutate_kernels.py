"""Deletes each barrier, wait, commit and fence of the kernels, one at a time: each time a test must fail.

    python -m tests.emulation.mutate_kernels [--only sm80_forward] [--jobs 2]

Prints a table of the deletions and the tests that failed. Exit code 1 if no test failed for a deletion, or if a test
fails without any. Works on copies in build/. The kernels are compiled for head_dim 64, which has all their statements.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from tests.support import emulated_module
from tests.support.compiler import compiler_missing
from tests.support.paths import ROOT

STATEMENT = re.compile(
    r"(?<![\w.])(__syncthreads|__syncwarp|cp_async_wait<[^>]*>|cp_async_commit|__threadfence(?:_block)?|fence_\w+)"
    r"\([^;]*\);"
)
SECONDS = 300  # of tests, after which a mutation counts as a hang, and so as noticed

ORDER = "test_the_result_does_not_depend_on_the_order_in_which_warps_run"
CONTRASTIVE_TESTS = [
    f"tests/contrastive/test_kernels.py::{ORDER}[emulated-dtype0-whole]",
    f"tests/contrastive/test_kernels.py::{ORDER}[emulated-dtype1-tiles]",
    "tests/contrastive/test_kernels.py::test_against_float64[emulated-many-examples]",
]
# Fast ones first. All of them run head_dim 64.
ATTENTION_TESTS = [
    f"tests/attention/test_kernels.py::{ORDER}[emulated-64-Hopper]",
    f"tests/attention/test_kernels.py::{ORDER}[emulated-64-8.6]",
    "tests/attention/test_kernels.py::test_many_sequences[emulated]",
    "tests/attention/test_kernels.py::test_packed_against_float64[emulated-64-many-examples]",
    "tests/attention/test_kernels.py::test_padded_against_float64[emulated-64-many-examples]",
]
# The mutated files and their tests.
KERNELS = {
    "csrc/attention/*.cuh": ATTENTION_TESTS,
    "csrc/contrastive/*.cuh": CONTRASTIVE_TESTS,
    "csrc/device/sm80_tile.cuh": ATTENTION_TESTS + CONTRASTIVE_TESTS,
}


class Mutation(NamedTuple):
    file: str  # relative to ROOT
    line: int
    start: int  # of the statement in the file's text
    stop: int
    statement: str
    tests: list[str]


def mutations(only: str = "") -> Iterator[Mutation]:
    for pattern, tests in KERNELS.items():
        paths = sorted(ROOT.glob(pattern))
        if not paths:
            raise SystemExit(f"no file matches {pattern}")
        for path in paths:
            if only not in path.name:
                continue
            text = path.read_text()
            for match in STATEMENT.finditer(text):
                line = text.count("\n", 0, match.start()) + 1
                if "//" in text.splitlines()[line - 1][: match.start() - text.rfind("\n", 0, match.start()) - 1]:
                    continue  # in a comment
                yield Mutation(str(path.relative_to(ROOT)), line, *match.span(), match[0], tests)


def run(mutation: Mutation | None, slot: int) -> str | None:
    """The test that fails without the mutation's statement, and its error; None if no test fails.

    Runs that go on at the same time need different slots, because each slot has its own folders.
    """
    source = ROOT / "build" / f"mutation-{slot}"
    source.mkdir(parents=True, exist_ok=True)
    # Equal files are not written again, so that only what depends on the others is compiled.
    for path in [ROOT / "CMakeLists.txt", *(ROOT / "csrc").rglob("*")]:
        target = source / path.relative_to(ROOT)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        content = path.read_bytes()
        if mutation is not None and path == ROOT / mutation.file:
            text = content.decode()
            content = (text[: mutation.start] + ";" + text[mutation.stop :]).encode()
        if not target.exists() or target.read_bytes() != content:
            target.write_bytes(content)
    try:
        module = emulated_module.build(f"mutation-{slot}", flags="-O1", head_dims="64", source=source)
    except RuntimeError as error:
        raise SystemExit(f"{mutation} does not compile:\n{error}") from error
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n0", "-m", "", "--no-header", "--tb=line"]
    command += ["-p", "no:cacheprovider"]
    environment = os.environ | {"CONAN_FAST_EMULATED": str(module), "OMP_NUM_THREADS": "1", "COLUMNS": "300"}
    try:
        result = subprocess.run(
            [*command, "--hypothesis-seed=0", *(mutation.tests if mutation else ATTENTION_TESTS + CONTRASTIVE_TESTS)],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"hangs (more than {SECONDS} s)"
    if result.returncode == 0:
        return None
    if result.returncode < 0:
        return f"the process was ended by {signal.Signals(-result.returncode).name}"
    if result.returncode != 1:  # for example because a test was not found
        raise SystemExit(f"pytest exited with {result.returncode} for {mutation}:\n{result.stdout}")
    failed = re.search(r"FAILED \S+::(\S+)(?: - (.*))?", result.stdout)
    if failed is None:
        raise SystemExit(f"no failed test in the output of pytest for {mutation}:\n{result.stdout}")
    return f"{failed[1]}: {(failed[2] or '').strip()[:140]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="mutate only files whose name contains TEXT")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutations at a time (default: cores)")
    options = parser.parse_args()
    if reason := compiler_missing():
        print(reason, file=sys.stderr)
        return 2
    chosen = list(mutations(options.only))
    slots = list(range(options.jobs))

    def work(mutation: Mutation | None) -> str | None:
        slot = slots.pop()
        try:
            return run(mutation, slot)
        finally:
            slots.append(slot)

    with ThreadPoolExecutor(options.jobs) as pool:
        unmutated = work(None)
        if unmutated is not None:
            print(f"a test fails without any mutation: {unmutated}", file=sys.stderr)
            return 1
        results = list(tqdm(pool.map(work, chosen), total=len(chosen), unit="mutation"))
    for slot in slots:
        shutil.rmtree(ROOT / "build" / f"mutation-{slot}", ignore_errors=True)
    print("| place | deleted | noticed by |\n|---|---|---|")
    for mutation, noticed in zip(chosen, results, strict=True):
        print(f"| {Path(mutation.file).name}:{mutation.line} | `{mutation.statement}` | {noticed or '**nothing**'} |")
    unnoticed = results.count(None)
    print(f"{len(chosen)} mutations, {unnoticed} unnoticed")
    return 1 if unnoticed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
