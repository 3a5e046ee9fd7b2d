"""Numbers and tables as the explanation prints them."""

from __future__ import annotations

from collections.abc import Sequence

_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def amount(number: float, unit: str) -> str:
    """1.92 TFLOP."""
    for factor, prefix in _PREFIXES:
        if number >= factor:
            return f"{number / factor:.3g} {prefix}{unit}" if number < 999.5 * factor else f"{number:,.0f} {unit}"
    return f"{number:.3g} {unit}"


def duration(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def table(title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Lines: a title with the columns' names, then rows, cells to the right."""
    widths = [
        max(len(name), *(len(cells[i]) for _, cells in rows)) if rows else len(name) for i, name in enumerate(columns)
    ]
    first = max(len(title), *(len(label) + 2 for label, _ in rows)) if rows else len(title)
    lines = []
    for label, cells in [(title, columns), *((f"  {label}", cells) for label, cells in rows)]:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        lines.append("  " + "  ".join([label.ljust(first), *padded]).rstrip())
    return lines
