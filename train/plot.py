"""Plot a run: losses, soft mask, scores by stage, replaced negatives."""

from pathlib import Path
from typing import TYPE_CHECKING

from train.evaluation.report import load_report
from train.evaluation.scores import Scores
from train.metrics import read_metrics
from train.run import STAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette for color-blind readers.
STAGE_COLORS = {"pretrain": "#0072B2", "sft": "#56B4E9", "weak": "#009E73", "supervised": "#D55E00"}
TASK_COLORS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7"]


def plot_run(folder: Path) -> Path:
    """Plot the results so far of the run in `folder` to summary.png; returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(12, 7.5), layout="constrained")
    lines = {stage: read_metrics(folder / stage / "metrics.jsonl") for stage in STAGES}
    _plot_losses(axes[0, 0], lines)
    _plot_mask(axes[0, 1], lines)
    scores = folder / "scores.json"
    _plot_scores(axes[1, 0], load_report(scores) if scores.is_file() else {})
    _plot_replaced(axes[1, 1], lines["supervised"])
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
    target = folder / "summary.png"
    figure.savefig(target, dpi=110)
    pyplot.close(figure)
    return target


def _plot_losses(axis: "Axes", lines: dict[str, list[dict[str, float]]]) -> None:
    first = 0.0
    for stage, records in lines.items():
        if not records:
            continue
        names = sorted({n for r in records for n in r if n.startswith("loss/")}) or ["loss"]
        for style, name in zip(["-", "--", ":", "-."], names, strict=False):
            points = [(first + r["step"], r[name]) for r in records if name in r]
            label = stage if name == "loss" else f"{stage}: {name.rpartition(':')[2].rpartition('/')[2]}"
            axis.plot(*zip(*points, strict=True), style, color=STAGE_COLORS[stage], label=label, linewidth=1.4)
        first += records[-1]["step"]
    axis.set(title="Loss", xlabel="optimizer steps, all stages", ylabel="loss", yscale="log")
    if first:
        axis.legend(fontsize=8)


def _plot_mask(axis: "Axes", lines: dict[str, list[dict[str, float]]]) -> None:
    first = 0.0
    for stage, records in lines.items():
        if records:
            points = [(first + r["step"], r["alpha"]) for r in records]
            axis.plot(*zip(*points, strict=True), color=STAGE_COLORS[stage], label=stage, linewidth=2)
            first += records[-1]["step"]
    axis.set(
        title="Soft mask", xlabel="optimizer steps, all stages", ylabel="alpha (0 causal, 1 bidirectional)",
        ylim=(-0.05, 1.05),
    )  # fmt: skip
    if first:
        axis.legend(fontsize=8)


def _plot_scores(axis: "Axes", results: dict[str, Scores]) -> None:
    columns: dict[str, dict[str, float]] = {}
    for model, scores in results.items():
        for task, entry in scores.tasks.items():
            columns.setdefault(f"{task} ({entry.main})", {})[model] = entry.main_score
            if entry.non_latin:
                columns.setdefault(f"{task}, non-Latin scripts", {})[model] = entry.non_latin[entry.main]
    width = 0.8 / max(1, len(columns))
    for number, (title, values) in enumerate(columns.items()):
        positions = [i + (number - (len(columns) - 1) / 2) * width for i, m in enumerate(results) if m in values]
        axis.bar(positions, list(values.values()), width, label=title, color=TASK_COLORS[number % len(TASK_COLORS)])
    axis.set_xticks(range(len(results)), list(results))
    axis.set(title="Scores on held-out text", ylabel="score")
    if columns:
        axis.legend(fontsize=8)


def _plot_replaced(axis: "Axes", records: list[dict[str, float]]) -> None:
    points = [(r["step"], 100 * r["replaced"]) for r in records if "replaced" in r]
    if points:
        axis.plot(*zip(*points, strict=True), color=STAGE_COLORS["supervised"], linewidth=1.4)
    axis.set(title="Dynamic hard negatives", xlabel="steps of the supervised stage", ylabel="replaced per step, %")
