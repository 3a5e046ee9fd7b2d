"""The tables of a suite: one for each case, and who is not in it, and why."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.report import text
from benchmarks.result import Row, Run, by_case

PARTS = ("attention", "projections", "loss", "optimiser", "rest")  # of a step
_ROLES = {"ours": "**ours**", "rival": "same result", "bound": "bound: does less", "floor": "floor"}


def of_case(rows: Sequence[Row]) -> str:
    """All implementations of a case that have a time, the fastest first; a time as a multiple of ours of its rounds."""
    shown = sorted((row for row in rows if row.measured), key=lambda row: row.ms)
    if not shown:
        return "Nothing was measured here."
    parts = [time.part for time in shown[0].times()]
    header = ["", ""]
    for part in parts:
        header += [part, "10-90 %", "/ ours", "TFLOP/s", "of the floor"]
    header += ["peak memory", "rounds"]
    lines = []
    for row in shown:
        cells = [f"`{row.name}`", _ROLES[row.role]]
        for time in row.times():
            low, high = time.spread
            cells += [
                text.milliseconds(time.ms) + "°" * time.of_the_host,
                f"{low:.3g}-{high:.3g}",
                text.ratio(time.versus_ours),
            ]
            cells += [f"{time.flop_per_s / 1e12:.3g}", f"{time.share_of_floor:.1%}"]
        rounds = [time.rounds for time in row.times()]
        cells += [text.memory(row["peak_bytes"]), str(min(rounds))]
        lines.append(cells)
    return text.table(header, lines, numbers_from=2)


def absent(run: Run, suite: str) -> str:
    """Implementations without a time in some case: the reasons, and in how many cases each held."""
    cases = by_case(run.rows(suite))
    reasons: dict[tuple[str, bool, str], list[str]] = {}
    for case, rows in cases.items():
        for row in rows.values():
            if not row.measured:
                reasons.setdefault((row.name, row["wrong"], row["reason"]), []).append(case)
    if not reasons:
        return "Every implementation ran in every case."
    lines = []
    for (name, wrong, reason), where in reasons.items():
        count = "every case" if len(where) == len(cases) else "; ".join(where)
        lines.append([f"`{name}`", f"**WRONG RESULT**: {reason}" if wrong else reason, count])
    return text.table(["without a time", "why", "where"], lines, numbers_from=3)


def wrong_ours(run: Run, suites: Sequence[str]) -> str | None:
    """Cases in which a result of ours was wrong; None where there are none."""
    wrong = [
        f"{row.case}, `{row.name}` ({row['reason']})"
        for suite in suites
        for row in run.rows(suite)
        if row["wrong"] and row.role == "ours"
    ]
    return "; ".join(wrong) or None


def fallbacks(run: Run, suites: Sequence[str]) -> str | None:
    """Cases on a GPU in which ours was not the kernels; None where there are none."""
    without = {
        f"{row.case} ({row['case'].get('kernels_not_used') or 'the kernels are missing'})": None
        for suite in suites
        for row in run.rows(suite)
        if run.gpu and row["case"].get("our_backend", "cuda") != "cuda"
    }
    return "; ".join(without) or None


def about(run: Run, suite: str, known: dict[str, str]) -> str:
    """What the names mean."""
    names = dict.fromkeys(row.name for row in run.rows(suite))
    return "\n".join(f"- `{name}`: {known[name]}" for name in names if name in known)


def breakdown(rows: Sequence[Row]) -> str | None:
    """Where the time of a step goes; None where no row says it."""
    with_parts = [row for row in rows if row.measured and row.content.get("breakdown")]
    if not with_parts:
        return None
    lines = []
    for row in with_parts:
        shares = [row["breakdown"].get(part) for part in PARTS]
        shown = ["in the rest" if share is None else f"{share:.0%}" for share in shares]
        lines.append([row.case, f"`{row.name}`", text.milliseconds(row.ms), *shown])
    return text.table(["case", "", "step", *PARTS], lines, numbers_from=2)


def steps(rows: Sequence[Row]) -> str:
    """Tokens per second and model FLOP utilisation of each step."""
    lines = []
    for row in rows:
        if row.measured:
            (time,) = row.times()
            product = row.run.ceilings(row.suite).product_flop_per_s
            padded = row.content.get("padded_tokens")
            lines.append(
                [
                    row.case,
                    f"`{row.name}`",
                    text.milliseconds(time.ms) + "°" * time.of_the_host,
                    f"{row['tokens'] / time.ms * 1e3:,.0f}",
                    f"{time.flop_per_s / product:.1%}",
                    text.memory(row["peak_bytes"]),
                    "-" if padded is None else f"{padded / row['tokens'] - 1:.0%}",
                    text.ratio(time.versus_ours),
                ]
            )
    header = ["case", "", "step", "tokens/s", "MFU", "peak memory", "padding", "/ ours"]
    return text.table(header, lines, numbers_from=2)
