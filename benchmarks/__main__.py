"""How fast is it, and beside whom? Measure, report, look into a kernel.

python -m benchmarks run      operators and training step beside their peers -> a result file
python -m benchmarks report   result files -> benchmarks/REPORT.md, with pictures
python -m benchmarks explain  what a kernel takes (registers, instructions) and how far it is from its floor
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from benchmarks import run
from benchmarks.explain import command as explain
from benchmarks.report import command as report

COMMANDS = {"run": run, "report": report, "explain": explain}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{run,report,explain}")
    parsers = {}
    for name, module in COMMANDS.items():
        parsers[name] = commands.add_parser(
            name,
            description=module.__doc__,
            help=(module.__doc__ or "").splitlines()[0],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(parsers[name])
    options = parser.parse_args(arguments)
    try:
        return COMMANDS[options.command].main(options)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
