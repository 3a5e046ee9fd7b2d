"""The pictures of the report, each from one run."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from benchmarks.report.style import GREY, HATCHES, MARKERS, OURS, PARTS, PEERS, TEXT, Looks
from benchmarks.report.tables import first_cases
from benchmarks.report.text import milliseconds
from benchmarks.result import Row, Run

_TITLES = {"attention": "Soft-masked attention", "contrastive": "InfoNCE", "step": "Training step"}
Value = Callable[[Row], float | None]


def top(run: Run, suites: Sequence[str]) -> Figure | None:
    """Bars: the first case of each suite, all implementations with a time; None if ours has none."""
    panels = [(suite, rows) for suite in suites for rows in first_cases(run, suite)]
    if not panels:
        return None
    heights = [1.1 + 0.24 * len(_bars(rows)) for _, rows in panels]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(8, sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for axis, (suite, rows) in zip(axes.flat, panels, strict=True):
        _panel(axis, rows)
        axis.set_title(f"{_TITLES[suite]}: {rows[0].case}", loc="left", fontweight="bold")
    if run.gpu is None:
        figure.suptitle("On a CPU, in float32: the torch backend, not the CUDA kernels", color=TEXT, fontsize=10)
    return figure


def _bars(rows: Sequence[Row]) -> list[Row]:
    """The slowest first: bars are placed from below."""
    return sorted((row for row in rows if row.timed and row.role != "gemms"), key=lambda row: -row.ms)


def _panel(axis: Axes, rows: Sequence[Row]) -> None:
    bars = _bars(rows)
    ours = next(row for row in bars if row.name == "ours")
    for place, row in enumerate(bars):
        bound = row.role == "bound"
        color = OURS if row.role == "ours" else "none" if bound else GREY
        axis.barh(place, row.ms, height=0.72, color=color, edgecolor=OURS if row.role == "ours" else GREY, zorder=2)
        note = milliseconds(row.ms) + ("" if row is ours else f", {_versus(row, ours)}")
        axis.text(row.ms, place, f"  {note}", va="center", fontsize=9)
    names = [f"{row.name}{' (does less)' if row.role == 'bound' else ''}" for row in bars]
    axis.set_yticks(range(len(bars)), names)
    roofline_ms = ours.roofline_ms
    axis.axvline(roofline_ms, color=PEERS[0], linestyle=":", linewidth=1.8, zorder=3)
    axis.text(roofline_ms, len(bars) - 0.35, f" roofline {milliseconds(roofline_ms)}", color=PEERS[0], fontsize=9)
    axis.set_xlim(0, 1.32 * max(row.ms for row in bars))
    axis.set_ylim(-0.6, len(bars) + 0.1)
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel("milliseconds")


def _versus(row: Row, ours: Row) -> str:
    times = list(row.times())
    versus = times[0].versus_ours if len(times) == 1 else None  # sums of parts have no common rounds
    if versus is not None and versus["differs"] is False:
        return "as fast as ours"
    return f"{versus['ratio'] if versus else row.over(ours):.2f} x ours"


def over_length(run: Run, head_dim: int) -> Figure | None:
    """Attention: time and rate over the length, forward and backward; None if there is only one length."""
    rows = [row for row in run.rows("attention") if row.timed and row["case"]["head_dim"] == head_dim]
    if len({row["case"]["length"] for row in rows}) < 2:
        return None
    looks = _looks(run, "attention")
    figure, axes = plt.subplots(2, 2, figsize=(9, 7), sharex=True, layout="constrained")
    for column, part in enumerate(("forward", "backward")):
        _lines(axes[0, column], rows, "length", partial(_ms, part=part), looks)
        _lines(axes[1, column], rows, "length", partial(_rate, part=part), looks)
        axes[0, column].set_title(part)
        _logarithmic(axes[0, column])
        axes[1, column].set_xlabel("tokens of a sequence")
        ceiling = run.ceilings("attention").gemm_flop_per_s / 1e12
        axes[1, column].set_ylim(0, 1.1 * max(ceiling, axes[1, column].get_ylim()[1]))
        axes[1, column].axhline(ceiling, color=GREY, linestyle=":")
        axes[1, column].annotate(
            "GEMM", (1, ceiling), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8
        )
    axes[0, 0].set_ylabel("ms")
    axes[1, 0].set_ylabel("TFLOP/s (useful)")
    _legend(figure, axes.flat)
    figure.suptitle(f"Soft-masked attention, head_dim {head_dim}", color=TEXT)
    return figure


def over_pairs(run: Run) -> Figure | None:
    """InfoNCE: time and peak memory over the batch, at the largest D with all its dims, one column for each K."""
    timed = [row for row in run.rows("contrastive") if row.timed]
    dim = max((row["case"]["dim"] for row in timed), default=0)
    rows = [row for row in timed if row["case"]["dim"] == dim and len(row["case"]["dims"]) > 1]
    counts = sorted({row["case"]["negatives"] for row in rows})
    if len({row["case"]["pairs"] for row in rows}) < 2:
        return None
    looks = _looks(run, "contrastive")
    figure, axes = plt.subplots(
        2, len(counts), figsize=(4.5 * len(counts), 7), sharex=True, squeeze=False, layout="constrained"
    )
    for column, negatives in enumerate(counts):
        some = [row for row in rows if row["case"]["negatives"] == negatives]
        _lines(axes[0, column], some, "pairs", partial(_ms, part="both"), looks, rows)
        _lines(axes[1, column], [row for row in some if row.role != "gemms"], "pairs", _mebibytes, looks, rows)
        axes[0, column].set_title(f"K = {negatives} hard negatives")
        _logarithmic(axes[0, column])
        _logarithmic(axes[1, column])
        axes[1, column].set_xlabel("pairs N")
    axes[0, 0].set_ylabel("ms")
    axes[1, 0].set_ylabel("peak memory above the inputs, MiB")
    _legend(figure, axes.flat)
    figure.suptitle(f"InfoNCE, D = {dim}, {len(rows[0]['case']['dims'])} Matryoshka dims", color=TEXT)
    return figure


def roofline(run: Run, suites: Sequence[str]) -> Figure:
    """Our operators under the two ceilings: useful FLOP/s over FLOP per byte."""
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    known = [run.ceilings(suite) for suite in suites]  # each process measured them; the best counts
    peak, bandwidth = (max(getattr(c, what) for c in known) for what in ("gemm_flop_per_s", "copy_bytes_per_s"))
    points = [
        (suite, time)
        for suite in suites
        for row in run.rows(suite)
        if row.name == "ours" and row.timed
        for time in row.times()
    ]
    ridge = peak / bandwidth
    reach = [ridge / 8, ridge * 8, *(time.work.intensity for _, time in points)]
    low, high = min(reach) / 1.5, max(reach) * 1.5
    axis.plot([low, ridge, high], [low * bandwidth / 1e12, peak / 1e12, peak / 1e12], color=TEXT, linewidth=1.5)
    axis.text(high, peak / 1e12, f"{peak / 1e12:.3g} TFLOP/s, {known[0].dtype} ", ha="right", va="bottom", fontsize=9)
    axis.text(low * 1.5, low * 1.1 * bandwidth / 1e12, f"{bandwidth / 1e9:.4g} GB/s, copied", fontsize=9)
    kinds: dict[str, list[tuple[float, float]]] = {}
    for suite, time in points:
        name = _TITLES[suite] + (f", {time.part}" if suite == "attention" else "")
        kinds.setdefault(name, []).append((time.work.intensity, time.flop_per_s / 1e12))
    for (name, some), color, marker in zip(kinds.items(), (OURS, *PEERS), MARKERS, strict=False):
        intensities, rates = zip(*some, strict=True)
        axis.scatter(intensities, rates, color=color, marker=marker, s=28, label=name, zorder=3)
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
    rows = [row for row in run.rows("step") if row.timed and row.content.get("breakdown")]
    if not rows:
        return None
    rows.reverse()  # bars are placed from below
    figure, axis = plt.subplots(figsize=(9, 0.9 + 0.36 * len(rows)), layout="constrained")
    for place, row in enumerate(rows):
        left = 0.0
        for part, hatch in zip(PARTS, HATCHES, strict=True):
            width = row["breakdown"].get(part, 0.0) * row.ms
            axis.barh(
                place, width, left=left, height=0.7, color=PARTS[part], hatch=hatch, edgecolor=TEXT, linewidth=0.3,
                label=part if place == 0 else None,
            )  # fmt: skip
            left += width
    axis.set_yticks(range(len(rows)), [f"{row.case}: {row.name}" for row in rows], fontsize=8)
    axis.set_xlabel("milliseconds of a step")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.0 + 0.9 / (1 + len(rows))), ncols=len(PARTS))
    return figure


def _ms(row: Row, part: str) -> float | None:
    time = row.time(part)
    return None if time is None else time.ms


def _rate(row: Row, part: str) -> float | None:
    time = row.time(part)
    return None if time is None else time.flop_per_s / 1e12


def _mebibytes(row: Row) -> float | None:
    return row["peak_bytes"] / 2**20 if row["peak_bytes"] else None


def _looks(run: Run, suite: str) -> Looks:
    return Looks(list(dict.fromkeys(row.name for row in run.rows(suite) if row.timed)))


def _logarithmic(axis: Axes) -> None:
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
    axis.yaxis.set_minor_locator(NullLocator())


def _lines(
    axis: Axes, rows: Sequence[Row], field: str, value: Value, looks: Looks, of_all: Sequence[Row] | None = None
) -> None:
    """of_all: the rows of all panels that share the x axis, where these are not all of them."""
    of_all = rows if of_all is None else of_all
    names: dict[str, list[Row]] = {}
    for row in rows:
        names.setdefault(row.name, []).append(row)
    for name, some in names.items():
        points = sorted((row["case"][field], number) for row in some if (number := value(row)) is not None)
        if points:
            axis.plot(*zip(*points, strict=True), label=name, **looks(name, some[0].role))
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted({row["case"][field] for row in of_all}))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_formatter(FuncFormatter(_thousands))
    axis.grid(True)


def _thousands(number: float, _: int) -> str:
    return f"{number / 1024:g}k" if number >= 1024 else f"{number:g}"


def _legend(figure: Figure, axes: Iterable[Axes]) -> None:
    known = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=3)


def all_of(run: Run, suites: Sequence[str]) -> dict[str, Figure]:
    """By file name, without those for which the run has too few rows."""
    figures: dict[str, Figure | None] = {"top": top(run, suites)}
    if "attention" in suites:
        head_dims = dict.fromkeys(row["case"]["head_dim"] for row in run.rows("attention"))
        figures |= {f"attention-{head_dim}": over_length(run, head_dim) for head_dim in head_dims}
    if "contrastive" in suites:
        figures["contrastive"] = over_pairs(run)
    operators = [suite for suite in suites if suite != "step"]
    if operators:
        figures["roofline"] = roofline(run, operators)
    if "step" in suites:
        figures["step"] = breakdown(run)
    return {name: figure for name, figure in figures.items() if figure is not None}
