"""Numbers for readers, and Markdown tables."""

from collections.abc import Iterable, Sequence
from typing import Any


def milliseconds(value: float) -> str:
    return f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.3g} s"


def memory(size: int | None) -> str:
    if size is None:
        return "-"
    return f"{size / 2**20:.0f} MiB" if size < 2**30 else f"{size / 2**30:.1f} GiB"


def ratio(comparison: dict[str, Any] | None) -> str:
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
