"""Train a text embedder from scratch, following Conan-Embedding-v2.

commands, in the order of the paper:
  tokenizer    train a byte-level BPE tokenizer on the pretraining text
  pretrain     stage 1: next-token prediction on plain text (causal mask)
  sft          stage 2: next-token prediction on the outputs of instructions (causal mask)
  weak         stage 3: in-batch InfoNCE while the soft mask goes from causal to bidirectional
  mine         find pools of hard negatives with the model of stage 3
  supervised   stage 4: InfoNCE with dynamic hard negatives, CoSENT, Matryoshka dims
  evaluate     score all finished stages on held-out text, or the last one on tasks of mteb
  demo         all of the above in order
  plot         plot the results of a run to summary.png

Every field of the recipe can be set on the command line by its dotted name; --fields lists them with their defaults.

examples:
  python -m train demo                                   # minutes on two CPU cores; downloads 11 MB of text once
  python -m train demo --weak.soft_mask=off --output=runs/no-mask
  python -m train demo --resume                          # continue after Ctrl-C or a crash
  python -m train evaluate --recipe runs/no-mask --languages
  python -m train weak --recipe my.toml --weak.steps 2000 --weak.sources.0.path my_pairs.jsonl
  python -m train evaluate --task STSBenchmark --task "MTEB(eng, v2)"
"""

import argparse
import sys
from collections.abc import Callable, Sequence

from train.recipe import Recipe, RecipeError, describe_fields, load_recipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0 done, 2 error, 130 stopped by the user."""
    parser = argparse.ArgumentParser(
        prog="python -m train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # or a misspelt field could match an option
    )
    commands = ["tokenizer", "pretrain", "sft", "weak", "mine", "supervised", "evaluate", "demo", "plot"]
    parser.add_argument("command", nargs="?", choices=commands, metavar="command", help="see above")
    parser.add_argument(
        "--recipe",
        default="tiny",
        help="name of one in train/recipes, TOML file, or folder of a run (default: tiny)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue from the newest checkpoint; keep finished results"
    )
    parser.add_argument("--overwrite", action="store_true", help="delete earlier results and start again")
    parser.add_argument("--task", action="append", default=[], help="evaluate: name of an mteb task or benchmark")
    parser.add_argument("--languages", action="store_true", help="evaluate: also print a table of all languages")
    parser.add_argument("--fields", action="store_true", help="list all fields of the recipe and exit")
    options, rest = parser.parse_known_args(arguments)
    if options.fields:
        print("\n".join(describe_fields()))
        return 0
    if options.command is None:
        parser.print_help()
        return 2
    try:
        recipe = load_recipe(options.recipe, _overrides(rest))
        return _run(options, recipe)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace, recipe: Recipe) -> int:
    # Imported here, so that --help and recipe errors are instant.
    from train.commands import COMMANDS
    from train.demo import demo
    from train.evaluation.stages import evaluate_run
    from train.interrupt import StoppedByUser
    from train.plot import plot_run
    from train.run import Run

    def with_plot(command: Callable[[Run], object]) -> Callable[[Run], object]:
        return lambda run: (command(run), plot_run(run.folder))

    commands: dict[str, Callable[[Run], object]] = {
        **{name: with_plot(command) for name, command in COMMANDS.items()},
        "demo": demo,
        "evaluate": lambda run: evaluate_run(run, options.task, language_tables=options.languages),
        "plot": lambda run: print(plot_run(run.folder)),
    }
    try:
        commands[options.command](Run(recipe, resume=options.resume, overwrite=options.overwrite))
    except StoppedByUser as stop:
        print(f"\n{stop}; a checkpoint is saved, continue with --resume", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("\nstopped; finished results are kept, continue with --resume", file=sys.stderr)
        return 130
    return 0


def _overrides(arguments: Sequence[str]) -> dict[str, str]:
    """`--a.b=c` and `--a.b c` as {"a.b": "c"}."""
    fields: dict[str, str] = {}
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not name:
            raise RecipeError(f"{argument!r}: not an option; set fields like --weak.steps=100")
        if not equals:
            if not waiting or waiting[0].startswith("--"):
                raise RecipeError(f"{argument}: needs a value, as in {argument}=VALUE")
            value = waiting.pop(0)
        fields[name] = value
    return fields


if __name__ == "__main__":
    sys.exit(main())
