"""Registers, stack, spills and shared memory of each kernel, from the output of ptxas.

As a program it is the launcher of nvcc: `resource_report.py nvcc ... -o x.o` runs the compiler and writes the report to
x.o.resources, so that objects that are not recompiled keep theirs.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_ENTRY = re.compile(r"ptxas info\s*: Compiling entry function '(?P<name>[^']+)' for '(?P<architecture>\w+)'")
_FRAME = re.compile(r"\s*(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"ptxas info\s*: Used (?P<registers>\d+) registers")
_SHARED = re.compile(r"(\d+)(?:\+\d+)? bytes smem")
_OTHER = re.compile(r"ptxas info\s*: (Function properties for|\d+ bytes gmem|Compile time|Overriding)")
_REPORT = (_ENTRY, _FRAME, _USED, _OTHER)


def is_report(line: str) -> bool:
    """Whether the line is part of the report. Advice such as "(C7510) Potential Performance Loss" is not."""
    return any(pattern.match(line) for pattern in _REPORT)


def parse(lines: Iterable[str]) -> list[dict[str, Any]]:
    """One entry per kernel and architecture, with mangled names."""
    kernels: list[dict[str, Any]] = []
    for line in lines:
        if match := _ENTRY.match(line):
            zeros = dict.fromkeys(
                ("registers", "stack_bytes", "spill_store_bytes", "spill_load_bytes", "static_shared_bytes"), 0
            )
            kernels.append({**match.groupdict(), **zeros})
        elif (match := _FRAME.match(line)) and kernels:
            # A function that was not inlined has its own line below its kernel's. It counts for the kernel.
            for key, value in zip(
                ("stack_bytes", "spill_store_bytes", "spill_load_bytes"), match.groups(), strict=True
            ):
                kernels[-1][key] += int(value)
        elif (match := _USED.match(line)) and kernels:
            kernels[-1]["registers"] = int(match["registers"])
            shared = _SHARED.search(line)
            kernels[-1]["static_shared_bytes"] = int(shared[1]) if shared else 0
    return kernels


def demangle(names: list[str]) -> list[str]:
    if not names or shutil.which("c++filt") is None:
        return names
    result = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return result.stdout.splitlines()


def gather(object_list: Path) -> list[dict[str, Any]]:
    """The reports of all objects that the file lists, one per line."""
    kernels = []
    for name in object_list.read_text().split("\n"):
        report = object_list.parent / f"{name}.resources"
        if name and report.exists():
            kernels += parse(report.read_text().splitlines())
    for kernel, name in zip(kernels, demangle([kernel["name"] for kernel in kernels]), strict=True):
        kernel["symbol"], kernel["name"] = kernel["name"], name
    return kernels


def launched_name(name: str) -> str:
    """The name in the module's lists: "sm80_forward<112>" for "void conan_fast::sm80_forward<...::Bf16, 112>(...)"."""
    match = re.search(r"(\w+)(?:<([^>]*)>)?\(", name)
    if match is None:
        return ""
    numbers = [part for part in (match[2] or "").split(", ") if part.isdigit()]
    return f"{match[1]}<{', '.join(numbers)}>" if numbers else match[1]


def add_dynamic_shared_memory(kernels: list[dict[str, Any]], sizes: Mapping[str, int]) -> None:
    """Adds `sizes`, by `launched_name`, to the entries of `gather`. ptxas reports static shared memory only."""
    for kernel in kernels:
        kernel["dynamic_shared_bytes"] = sizes.get(launched_name(kernel["name"]), 0)


def add_threads(kernels: list[dict[str, Any]], threads: Mapping[str, int]) -> None:
    """Adds the threads per block; None for a kernel that is not in `threads`."""
    for kernel in kernels:
        kernel["threads_per_block"] = threads.get(launched_name(kernel["name"]))


def table(kernels: list[dict[str, Any]]) -> str:
    lines = [f"{'code':8} {'registers':>9} {'stack':>6} {'spills':>7} {'shared':>7}  kernel"]
    for kernel in kernels:
        spills = kernel["spill_store_bytes"] + kernel["spill_load_bytes"]
        lines.append(
            f"{kernel['architecture']:8} {kernel['registers']:9} {kernel['stack_bytes']:6} {spills:7} "
            f"{kernel['static_shared_bytes'] + kernel.get('dynamic_shared_bytes', 0):7}  {kernel['name']}"
        )
    return "\n".join(lines)


def main(command: list[str]) -> int:
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    report = []
    for line in result.stderr.splitlines(keepends=True):
        if is_report(line):
            report.append(line)
        else:
            sys.stderr.write(line)
    if result.returncode == 0 and "-o" in command:
        Path(command[command.index("-o") + 1] + ".resources").write_text("".join(report))
    return result.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
