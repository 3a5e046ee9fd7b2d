"""One optimiser step of the embedding stages, and how much of it is the loss: python -m benchmarks.step

Random texts go through the training program itself: stage 3 (in-batch InfoNCE under the soft mask, half-way), stage 4
(InfoNCE with hard negatives at all Matryoshka dims) and stage 4 on scored pairs (CoSENT). The time of the loss is that
of its forward and backward pass between the embeddings and their gradients, taken inside the step. Without a GPU a very
small step runs on the CPU.

exit status: 0 measured on a GPU; 3 no GPU, so GPU figures are missing; 130 stopped by Ctrl-C
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict

from benchmarks import machine, runner, timing
from benchmarks.step_cases import STAGES, Shape, Trainer, recipe_of
from train.recipe import RecipeError

COLUMNS = "{:18} {:>9} {:>10} {:>9} {:>10} {:>9} {:>9} {:>9} {:>9}"
HEADER = COLUMNS.format("", "tokens", "ms", "loss", "loss", "embedding", "optimiser", "tokens", "peak")
HEADER += "\n" + COLUMNS.format("stage", "", "a step", "ms", "of a step", "ms", "ms", "/ s", "MiB")


def measure(trainer: Trainer, stage: str, shape: Shape, steps: int) -> runner.Row:
    def measured() -> runner.Row:
        with runner.leaves_out(trainer.device, 0, ours=True):
            run = trainer.run(stage, shape, steps)
        parts = {name: timing.Timing.of(seconds) for name, seconds in run.seconds.items()}
        shares = [loss / step for loss, step in zip(run.seconds["loss"], run.seconds["step"], strict=True)]
        return {
            "tokens": run.tokens,
            "dims": run.dims,
            "time": {name: asdict(part) for name, part in parts.items()},
            "share_of_loss": statistics.median(shares),
            "tokens_per_s": run.tokens / parts["step"].median_ms * 1e3,
            "peak_bytes": run.peak_bytes,
        }

    return runner.with_reason({"stage": stage, **asdict(shape)}, measured)


def _line(row: runner.Row, _: Sequence[runner.Row]) -> str:
    if row["reason"]:
        return f"{row['stage']:18} {runner.without_time(row)}"
    time, peak = row["time"], row["peak_bytes"]
    return COLUMNS.format(
        row["stage"],
        row["tokens"],
        *(f"{time[name]['median_ms']:.2f}" for name in ("step", "loss")),
        f"{row['share_of_loss']:.2%}",
        *(f"{time[name]['median_ms']:.2f}" for name in ("embedding", "optimiser")),
        f"{row['tokens_per_s']:.0f}",
        "-" if peak is None else f"{peak / 2**20:.0f}",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = runner.parser("step", __doc__)
    parser.add_argument("--model", help='"tiny", "small", "conan-1.4b" or a recipe (default: small; CPU: tiny)')
    parser.add_argument("--batch-size", type=int, help="pairs of a step (default: 256; CPU: 8)")
    parser.add_argument("--tokens", type=int, help="of each text (default: 128; CPU: 16)")
    parser.add_argument("--micro-batch-tokens", type=int, default=16384, help="of one forward (default: 16,384)")
    parser.add_argument("--steps", type=int, help="that are measured (default: 10; CPU: 3)")
    parser.add_argument("--stages", choices=list(STAGES), nargs="+", default=list(STAGES))
    options = parser.parse_args(arguments)
    device = runner.device_of(parser, options)
    gpu = device.type == "cuda"
    batch_size = options.batch_size or (256 if gpu else 8)
    shape = Shape(batch_size, options.tokens or (128 if gpu else 16), options.micro_batch_tokens)
    steps = options.steps or (10 if gpu else 3)
    if min(*asdict(shape).values(), steps) < 1:
        parser.error("--batch-size, --tokens, --micro-batch-tokens and --steps must be at least 1")
    try:
        recipe = recipe_of(options.model or ("small" if gpu else "tiny"))
    except RecipeError as error:
        parser.error(f"--model: {error}")
    if shape.text_tokens > recipe.model.max_position_embeddings:
        parser.error(f"--tokens must be at most {recipe.model.max_position_embeddings} for {recipe.name}")
    trainer = Trainer(recipe, device)
    out = runner.result_file("step", options, device)
    if not gpu:
        print("No GPU: a very small step on the CPU. GPU FIGURES ARE MISSING.", flush=True)

    facts = {"machine": machine.facts(device), "model": recipe.name, "parameters": trainer.parameters}
    result = runner.run(
        options.stages,
        lambda stage: measure(trainer, stage, shape, steps),
        _line,
        facts,
        out,
        options.budget_minutes,
    )
    return runner.finish(result, HEADER, _line, out, device)


if __name__ == "__main__":
    sys.exit(main())
