"""The tables of the report."""

from collections.abc import Iterable, Iterator, Sequence

from benchmarks.result import Json, Row, Run, Time, by_case

TITLES = {"attention": "Soft-masked attention", "contrastive": "InfoNCE", "step": "Training step"}
PARTS = ("attention", "projections", "loss", "optimiser", "rest")  # of a step
BASELINES = ("eager", "transformers_sdpa")
_ROLES = {"ours": "**ours**", "rival": "same result", "bound": "does less", "gemms": "GEMMs only"}


def milliseconds(value: float) -> str:
    return f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.3g} s"


def memory(size: int | None) -> str:
    if size is None:
        return "-"
    return f"{size / 2**20:.0f} MiB" if size < 2**30 else f"{size / 2**30:.1f} GiB"


def ratio(comparison: Json | None) -> str:
    """A benchmarks.paired.Comparison: the time as a multiple of ours, with its interval."""
    if comparison is None:
        return "-"
    interval = f"{comparison['low']:.2f}-{comparison['high']:.2f}"
    if comparison["differs"] is None:
        return f"{comparison['ratio']:.2f} (too few rounds for an interval)"
    if not comparison["differs"]:
        return f"no difference ({interval})"
    return f"**{comparison['ratio']:.2f}** ({interval})"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int = 1) -> str:
    """Columns from `numbers_from` on are aligned to the right."""
    rule = ["---" if i < numbers_from else "---:" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def first_cases(run: Run, suite: str) -> list[list[Row]]:
    """The rows of the suite's first case in which ours has a time; of the step the first of each stage."""
    cases: dict[str, list[Row]] = {}
    for rows in by_case(run.rows(suite)).values():
        if any(row.name == "ours" and row.timed for row in rows):
            cases.setdefault(rows[0]["case"].get("stage", ""), rows)
    return list(cases.values())


def summary(run: Run, suites: Sequence[str]) -> str:
    compared = ("fastest with the same result", "fastest that does less", "baseline")
    header = ["first case of each suite", "ours", "share of roofline (roofline time)"]
    header += [f"{which}, time / ours" for which in compared]
    return table(header, [line for suite in suites for line in _summary_lines(run, suite)])


def _summary_lines(run: Run, suite: str) -> Iterator[list[str]]:
    for rows in first_cases(run, suite):
        ours = next(row for row in rows if row.name == "ours")
        groups = [[row for row in rows if row.role == role] for role in ("rival", "bound")]
        groups.append([row for row in rows if row.name in BASELINES])
        for name, time in ours.parts.items():
            part = {"both": ", forward + backward", "step": ""}.get(name, f", {name}")
            roofline = f"{time.roofline_ms / time.ms:.0%} ({milliseconds(time.roofline_ms)})"
            fastest = [_fastest(group, name) for group in groups]
            yield [f"{TITLES[suite]}{part}<br>{ours.case}", _ms(time), roofline, *fastest]


def _fastest(rows: Sequence[Row], part: str) -> str:
    times = [time for row in rows if row.timed and (time := row.parts.get(part)) is not None]
    time = min(times, key=lambda time: time.ms, default=None)
    return "-" if time is None else f"`{time.row.name}`: {ratio(time.versus_ours)}"


def _ms(time: Time) -> str:
    return milliseconds(time.ms) + "°" * time.of_the_host


def of_case(rows: Sequence[Row]) -> str:
    """All implementations of a case that have a time, the fastest first."""
    shown = sorted((row for row in rows if row.timed), key=lambda row: row.ms)
    if not shown:
        return "No implementation has a time in this case."
    header = ["", ""]
    for part in shown[0].parts:
        header += [part, "10-90 %", "/ ours", "TFLOP/s", "of roofline"]
    lines = []
    for row in shown:
        cells = [f"`{row.name}`", _ROLES[row.role]]
        for time in row.parts.values():
            spread = f"{time.timing['low_ms']:.3g}-{time.timing['high_ms']:.3g}"
            cells += [_ms(time), spread, ratio(time.versus_ours)]
            cells += [f"{time.flop_per_s / 1e12:.3g}", f"{time.roofline_ms / time.ms:.1%}"]
        rounds = min(time.timing["rounds"] for time in row.parts.values())
        lines.append([*cells, memory(row["peak_bytes"]), str(rounds)])
    return table([*header, "peak memory", "rounds"], lines, numbers_from=2)


def steps(rows: Sequence[Row]) -> str:
    """Tokens per second and model FLOP utilisation of each step, and its parts."""
    lines = []
    for row in (row for row in rows if row.timed):
        (time,) = row.parts.values()
        padded, shares = row.content.get("padded_tokens"), row.content.get("breakdown") or {}
        lines.append(
            [
                f"{row.case}: `{row.name}`",
                _ms(time),
                ratio(time.versus_ours),
                f"{row['tokens'] / time.ms * 1e3:,.0f}",
                f"{time.flop_per_s / row.run.ceilings(row.suite).gemm_flop_per_s:.1%}",
                memory(row["peak_bytes"]),
                "-" if padded is None else f"{padded / row['tokens'] - 1:.0%}",
                *(f"{shares[part]:.0%}" if part in shares else "-" for part in PARTS),
            ]
        )
    return table(["", "step", "/ ours", "tokens/s", "MFU", "peak memory", "padding", *PARTS], lines)


def absent(run: Run, suite: str) -> str:
    """Implementations without a time in some case: the reasons, and the cases of each."""
    cases = by_case(run.rows(suite))
    reasons: dict[tuple[str, bool, str], list[str]] = {}
    for row in (row for row in run.rows(suite) if not row.timed):
        reasons.setdefault((row.name, row["wrong"], row["reason"]), []).append(row.case)
    if not reasons:
        return "Every implementation ran in every case."
    lines = []
    for (name, wrong, reason), where in reasons.items():
        count = "every case" if len(where) == len(cases) else "; ".join(where)
        lines.append([f"`{name}`", f"**WRONG RESULT**: {reason}" if wrong else reason, count])
    return table(["implementation", "reason", "cases"], lines, numbers_from=3)


def wrong_ours(run: Run, suites: Sequence[str]) -> str:
    """Cases in which a result of ours was wrong; "" if there are none."""
    rows = [row for suite in suites for row in run.rows(suite) if row["wrong"] and row.role == "ours"]
    return "; ".join(f"{row.case}, `{row.name}` ({row['reason']})" for row in rows)


def fallbacks(run: Run, suites: Sequence[str]) -> str:
    """Cases on a GPU in which ours was not the kernels; "" if there are none."""
    rows = [row for suite in suites for row in run.rows(suite) if run.gpu]
    without = [row for row in rows if row["case"].get("our_backend", "cuda") != "cuda"]
    texts = [f"{row.case} ({row['case'].get('kernels_not_used') or 'the kernels are missing'})" for row in without]
    return "; ".join(dict.fromkeys(texts))


def about(run: Run, suite: str, known: dict[str, str]) -> str:
    """What each implementation is."""
    names = dict.fromkeys(row.name for row in run.rows(suite))
    return "\n".join(f"- `{name}`: {known[name]}" for name in names if name in known)
