"""Train a text embedder from scratch, the Conan-Embedding-v2 way.

commands, in the order of the paper:
  tokenizer    byte-level BPE from the pretraining text
  pretrain     stage 1: next token on plain text (causal mask)
  sft          stage 2: next token on the outputs of instructions (causal mask)
  weak         stage 3: in-batch InfoNCE while the soft mask turns causal into bidirectional
  mine         pools of hard negatives, found with the model of stage 3
  supervised   stage 4: InfoNCE with dynamic hard negatives, CoSENT, Matryoshka dims
  evaluate     scores of all finished stages on held-out text, or of the last on tasks of mteb
  demo         all of it in order
  plot         draw RUN/summary.png again

Every field of the recipe can be set on the command line by its dotted name; --fields lists them with their defaults.

examples:
  python -m train demo                                   # minutes on two CPU cores; downloads 11 MB of text once
  python -m train demo --weak.soft_mask=off --output=runs/no-mask
  python -m train demo --resume                          # go on after Ctrl-C or a crash
  python -m train evaluate --recipe runs/no-mask --languages
  python -m train weak --recipe my.toml --weak.steps 2000 --weak.sources.0.path my_pairs.jsonl
  python -m train evaluate --task STSBenchmark --task "MTEB(eng, v2)"
"""

import argparse
import sys
from collections.abc import Callable, Sequence

from train.recipe import Recipe, RecipeError, describe_fields, load_recipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status (0 done, 2 bad input, 130 stopped by the user and saved)."""
    parser = argparse.ArgumentParser(
        prog="python -m train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # or a misspelt field could pass for an option
    )
    commands = ["tokenizer", "pretrain", "sft", "weak", "mine", "supervised", "evaluate", "demo", "plot"]
    parser.add_argument("command", nargs="?", choices=commands, metavar="command", help="see above")
    parser.add_argument(
        "--recipe",
        default="tiny",
        help="name in train/recipes, TOML file, or folder of a run (default: tiny)",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint; keep what is finished")
    parser.add_argument("--overwrite", action="store_true", help="start again although there is an earlier run")
    parser.add_argument("--task", action="append", default=[], help="evaluate: a task or benchmark of mteb, by name")
    parser.add_argument("--languages", action="store_true", help="evaluate: also a table of all languages")
    parser.add_argument("--fields", action="store_true", help="list every field that can be set, and stop")
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
    # Imported here: --help and a wrong recipe answer at once.
    from train.commands import PARTS
    from train.demo import demo
    from train.evaluate import evaluate_run
    from train.interrupt import StoppedByUser
    from train.plot import plot_run
    from train.run import Run

    def with_picture(part: Callable[[Run], object]) -> Callable[[Run], object]:
        return lambda run: (part(run), plot_run(run.folder))

    commands: dict[str, Callable[[Run], object]] = {
        **{name: with_picture(part) for name, part in PARTS.items()},
        "demo": demo,
        "evaluate": lambda run: evaluate_run(run, options.task, languages=options.languages),
        "plot": lambda run: print(plot_run(run.folder)),
    }
    try:
        commands[options.command](Run(recipe, resume=options.resume, overwrite=options.overwrite))
    except StoppedByUser as stop:
        print(f"\n{stop}; everything is saved, go on with --resume", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("\nstopped; what was finished is kept, go on with --resume", file=sys.stderr)
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
            raise RecipeError(f"{argument!r}: is no option; fields are set like --weak.steps=100")
        if not equals:
            if not waiting or waiting[0].startswith("--"):
                raise RecipeError(f"{argument}: needs a value, like {argument}=VALUE")
            value = waiting.pop(0)
        fields[name] = value
    return fields


if __name__ == "__main__":
    sys.exit(main())
