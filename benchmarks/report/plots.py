"""The pictures of the report, each from one run."""

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from benchmarks.report.style import GREY, HATCHES, MARKERS, OURS, PARTS, PEERS, TEXT, Looks
from benchmarks.report.tables import TITLES, first_cases, milliseconds
from benchmarks.result import Row, Run

Value = Callable[[Row], float | None]


def all_of(run: Run, suites: Sequence[str]) -> dict[str, Figure]:
    """By file name, without those for which the run has too few rows."""
    figures: dict[str, Figure | None] = {"top": top(run, suites)}
    if "attention" in suites:
        for head_dim in dict.fromkeys(row["case"]["head_dim"] for row in run.rows("attention")):
            figures[f"attention-{head_dim}"] = over_length(run, head_dim)
    if "contrastive" in suites:
        figures["contrastive"] = over_pairs(run)
    if operators := [suite for suite in suites if suite != "step"]:
        figures["roofline"] = roofline(run, operators)
    if "step" in suites:
        figures["step"] = breakdown(run)
    return {name: figure for name, figure in figures.items() if figure is not None}


def top(run: Run, suites: Sequence[str]) -> Figure | None:
    """Bars: the first case of each suite, all implementations with a time; None if ours has none."""
    panels = [(suite, _bars(rows)) for suite in suites for rows in first_cases(run, suite)]
    if not panels:
        return None
    heights = [1.1 + 0.24 * len(bars) for _, bars in panels]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(8, sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for axis, (suite, bars) in zip(axes.flat, panels, strict=True):
        _panel(axis, bars)
        axis.set_title(f"{TITLES[suite]}: {bars[0].case}", loc="left", fontweight="bold")
    if run.gpu is None:
        figure.suptitle("On a CPU, in float32: the torch backend, not the CUDA kernels", color=TEXT, fontsize=10)
    return figure


def _bars(rows: Sequence[Row]) -> list[Row]:
    """The slowest first: bars are placed from below."""
    return sorted((row for row in rows if row.timed and row.role != "gemms"), key=lambda row: -row.ms)


def _panel(axis: Axes, bars: Sequence[Row]) -> None:
    ours = next(row for row in bars if row.name == "ours")
    for place, row in enumerate(bars):
        edge = OURS if row.role == "ours" else GREY
        axis.barh(place, row.ms, height=0.72, color="none" if row.role == "bound" else edge, edgecolor=edge, zorder=2)
        _note(axis, row.ms, place, milliseconds(row.ms) + ("" if row is ours else f", {_versus(row, ours)}"))
    axis.set_yticks(range(len(bars)), [f"{row.name}{' (does less)' if row.role == 'bound' else ''}" for row in bars])
    axis.axvline(ours.roofline_ms, color=PEERS[0], linestyle=":", linewidth=1.8, zorder=3)
    _note(axis, ours.roofline_ms, len(bars) - 0.2, f"roofline {milliseconds(ours.roofline_ms)}", color=PEERS[0])
    axis.set_xlim(0, 1.32 * max(row.ms for row in bars))
    axis.set_ylim(-0.6, len(bars) + 0.1)
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel("milliseconds")


def _note(axis: Axes, x: float, y: float, note: str, color: str = TEXT) -> None:
    axis.annotate(note, (x, y), (5, 0), textcoords="offset points", va="center", fontsize=9, color=color)


def _versus(row: Row, ours: Row) -> str:
    times = list(row.parts.values())
    versus = times[0].versus_ours if len(times) == 1 else None  # sums of parts have no common rounds
    if versus is not None and versus["differs"] is False:
        return "as fast as ours"
    return f"{versus['ratio'] if versus else row.over(ours):.2f} x ours"


def over_length(run: Run, head_dim: int) -> Figure | None:
    """Attention: time and rate over the length, forward and backward; None if there is only one length."""
    rows = [row for row in run.rows("attention") if row.timed and row["case"]["head_dim"] == head_dim]
    if len({row["case"]["length"] for row in rows}) < 2:
        return None

    def values(part: str) -> tuple[Sequence[Row], Value, Value]:
        return rows, lambda row: row.parts[part].ms, lambda row: row.parts[part].flop_per_s / 1e12

    columns = {part: values(part) for part in ("forward", "backward")}
    figure, lower = _curves(run, "length", columns, ("ms", "TFLOP/s (useful)", "tokens of a sequence"))
    ceiling = run.ceilings("attention").gemm_flop_per_s / 1e12
    for axis in lower:
        axis.set_ylim(0, 1.1 * max(ceiling, axis.get_ylim()[1]))
        axis.axhline(ceiling, color=GREY, linestyle=":")
        axis.text(1, ceiling, "GEMM", transform=axis.get_yaxis_transform(), ha="right", va="bottom", fontsize=8)
    figure.suptitle(f"Soft-masked attention, head_dim {head_dim}", color=TEXT)
    return figure


def over_pairs(run: Run) -> Figure | None:
    """InfoNCE: time and peak memory over the batch, at the largest D with all its dims, one column for each K."""
    timed = [row for row in run.rows("contrastive") if row.timed]
    dim = max((row["case"]["dim"] for row in timed), default=0)
    rows = [row for row in timed if row["case"]["dim"] == dim and len(row["case"]["dims"]) > 1]
    if len({row["case"]["pairs"] for row in rows}) < 2:
        return None

    def mebibytes(row: Row) -> float | None:
        return row["peak_bytes"] / 2**20 if row["peak_bytes"] and row.role != "gemms" else None

    columns: dict[str, tuple[Sequence[Row], Value, Value]] = {}
    for count in sorted({row["case"]["negatives"] for row in rows}):
        some = [row for row in rows if row["case"]["negatives"] == count]
        columns[f"K = {count} hard negatives"] = (some, lambda row: row.ms, mebibytes)
    figure, lower = _curves(run, "pairs", columns, ("ms", "peak memory above the inputs, MiB", "pairs N"))
    for axis in lower:
        _logarithmic(axis)
    figure.suptitle(f"InfoNCE, D = {dim}, {len(rows[0]['case']['dims'])} Matryoshka dims", color=TEXT)
    return figure


def _curves(
    run: Run, field: str, columns: dict[str, tuple[Sequence[Row], Value, Value]], labels: tuple[str, str, str]
) -> tuple[Figure, list[Axes]]:
    """For each title a column of two panels over the field of the case, the upper one logarithmic; the lower panels.

    columns: rows, upper and lower value. labels: of the upper and lower value, and of the field.
    """
    figure, axes = plt.subplots(
        2, len(columns), figsize=(4.5 * len(columns), 7), sharex=True, squeeze=False, layout="constrained"
    )
    all_rows = [row for rows, *_ in columns.values() for row in rows]
    looks = Looks(list(dict.fromkeys(row.name for row in run.rows(all_rows[0].suite) if row.timed)))
    for column, (title, (rows, *values)) in zip(axes.T, columns.items(), strict=True):
        for axis, value in zip(column, values, strict=True):
            for name in dict.fromkeys(row.name for row in rows):
                some = [row for row in rows if row.name == name]
                points = sorted((row["case"][field], number) for row in some if (number := value(row)) is not None)
                if points:
                    axis.plot(*zip(*points, strict=True), label=name, **looks(name, some[0].role))
            axis.set_xscale("log", base=2)
            axis.set_xticks(sorted({row["case"][field] for row in all_rows}))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1024:g}k" if x >= 1024 else f"{x:g}"))
            axis.grid(True)
        column[0].set_title(title)
        _logarithmic(column[0])
        column[1].set_xlabel(labels[2])
    for axis, label in zip(axes[:, 0], labels, strict=False):
        axis.set_ylabel(label)
    handles = {label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower left", ncols=2)  # beside the origin
    return figure, list(axes[1])


def _logarithmic(axis: Axes) -> None:
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
    axis.yaxis.set_minor_locator(NullLocator())


def roofline(run: Run, suites: Sequence[str]) -> Figure:
    """Our operators under the two ceilings: useful FLOP/s over FLOP per byte."""
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    known = [run.ceilings(suite) for suite in suites]  # each process measured them; the best counts
    peak, bandwidth = (max(getattr(c, what) for c in known) for what in ("gemm_flop_per_s", "copy_bytes_per_s"))
    kinds: dict[str, list[tuple[float, float]]] = {}
    for row in (row for suite in suites for row in run.rows(suite) if row.name == "ours" and row.timed):
        for part, time in row.parts.items():
            name = TITLES[row.suite] + (f", {part}" if row.suite == "attention" else "")
            kinds.setdefault(name, []).append((time.work.intensity, time.flop_per_s / 1e12))
    ridge = peak / bandwidth
    reach = [ridge / 8, ridge * 8, *(intensity for points in kinds.values() for intensity, _ in points)]
    low, high = min(reach) / 1.5, max(reach) * 1.5
    axis.plot([low, ridge, high], [low * bandwidth / 1e12, peak / 1e12, peak / 1e12], color=TEXT, linewidth=1.5)
    axis.text(high, peak / 1e12, f"{peak / 1e12:.3g} TFLOP/s, {known[0].dtype} ", ha="right", va="bottom", fontsize=9)
    axis.text(low * 1.5, low * 1.1 * bandwidth / 1e12, f"{bandwidth / 1e9:.4g} GB/s, copied", fontsize=9)
    for (name, points), color, marker in zip(kinds.items(), (OURS, *PEERS), MARKERS, strict=False):
        x, y = zip(*points, strict=True)
        axis.scatter(x, y, color=color, marker=marker, s=28, label=name, zorder=3)
    axis.set_xscale("log")
    _logarithmic(axis)
    axis.set_xlabel("useful FLOP per byte")
    axis.set_ylabel("TFLOP/s")
    axis.grid(True)
    if kinds:
        axis.legend(loc="lower right")
    return figure


def breakdown(run: Run) -> Figure | None:
    """Bars: the time of a step by part."""
    rows = [row for row in run.rows("step") if row.timed and row.content.get("breakdown")][::-1]  # from below
    if not rows:
        return None
    figure, axis = plt.subplots(figsize=(9, 0.9 + 0.36 * len(rows)), layout="constrained")
    left = [0.0] * len(rows)
    for (part, color), hatch in zip(PARTS.items(), HATCHES, strict=True):
        widths = [row["breakdown"].get(part, 0.0) * row.ms for row in rows]
        look: dict[str, Any] = {"color": color, "hatch": hatch, "edgecolor": TEXT, "linewidth": 0.3}
        axis.barh(range(len(rows)), widths, left=left, height=0.7, label=part, **look)
        left = [sum(pair) for pair in zip(left, widths, strict=True)]
    axis.set_yticks(range(len(rows)), [f"{row.case}: {row.name}" for row in rows], fontsize=8)
    axis.set_xlabel("milliseconds of a step")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.0 + 0.9 / (1 + len(rows))), ncols=len(PARTS))
    return figure
