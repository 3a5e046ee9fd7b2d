"""Speed and memory of the operators and of a training step, compared with other implementations ("peers").

python -m benchmarks run      measure everything -> a result file in benchmarks/results
python -m benchmarks report   result files -> benchmarks/REPORT.md and pictures
python -m benchmarks explain  one compiled kernel: resources, instructions, roofline time
"""

import argparse
import os
import sys
from collections.abc import Sequence

from benchmarks import run
from benchmarks.explain import command as explain
from benchmarks.report import command as report

COMMANDS = {"run": run, "report": report, "explain": explain}


def main(arguments: Sequence[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="{run,report,explain}")
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").splitlines()[0]
        module.add_arguments(commands.add_parser(name, description=module.__doc__, help=summary, formatter_class=raw))
    options = parser.parse_args(arguments)
    try:
        return COMMANDS[options.command].main(options)
    except BrokenPipeError:  # the reader, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
