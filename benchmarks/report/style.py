"""Colours and lines of the pictures: distinct for colour-blind readers, readable on white and on black.

The background is transparent. Each colour has a contrast of at least 3 to both white and black (WCAG 2.1, 1.4.11 asks
that of graphics), text at least 4.5, which leaves a narrow band of lightness. Usual colour-blind-safe palettes fail in
it: Okabe and Ito's green and purple, darkened, look alike to deuteranopes. These colours were searched for: any two
differ by at least 28 in CIELAB in normal vision, protanopia and deuteranopia. Colour is never alone: lines differ in
marker and dashes, parts of a bar in hatching.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from benchmarks.report import tables

TEXT = "#767676"
OURS = "#0072b2"
PEERS = ("#d55e00", "#6e00ff", "#aa6e50", "#6e6eff", "#8c506e")
GREY = "#808080"
MARKERS = "sD^vPX<>*h"
PARTS = dict(zip(tables.PARTS, (OURS, *PEERS), strict=False))
HATCHES = ("", "//", "..", "xx", "--")

_TEXT_COLOURS = ("text.color", "axes.labelcolor", "axes.titlecolor", "axes.edgecolor", "xtick.color", "ytick.color")
_SETTINGS: dict[Any, Any] = {
    **dict.fromkeys((*_TEXT_COLOURS, "grid.color"), TEXT),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # one name in place of a long list in every text of an SVG
    "font.size": 10,
    "axes.titlesize": 11,
    "grid.alpha": 0.25,
    "legend.fontsize": 9,
    "hatch.linewidth": 0.4,
    "svg.fonttype": "none",  # text stays text: small files that can be searched
    "svg.hashsalt": "conan_fast",  # the same figures make the same file
}


@contextmanager
def drawing() -> Iterator[None]:
    with matplotlib.rc_context(_SETTINGS):
        yield


def save(figure: Figure, path: Path) -> None:
    """As SVG, with a line for each group of elements."""
    file = io.StringIO()
    figure.savefig(file, format="svg", bbox_inches="tight")
    one_line = re.sub(r"\s*\n\s*", " ", re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", file.getvalue(), flags=re.S))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(re.sub(r"(</g>|\?>|<defs>|</style>) (?!</g>)", r"\1\n", one_line), encoding="utf-8")


class Looks:
    """Colour, marker and dashes of each implementation, the same in all pictures of a suite."""

    def __init__(self, names: list[str]) -> None:
        self._places = {name: i for i, name in enumerate(name for name in names if not name.startswith("ours"))}

    def __call__(self, name: str, role: str) -> dict[str, Any]:
        if role == "ours":
            style = "-" if name == "ours" else "-."
            return {"color": OURS, "marker": "o", "linestyle": style, "linewidth": 2.2, "zorder": 3, "markersize": 5}
        if role == "gemms":
            return {"color": GREY, "marker": "", "linestyle": ":", "linewidth": 1.6}
        place, style = self._places.get(name, 0), "--" if role == "bound" else "-"
        color, marker = PEERS[place % len(PEERS)], MARKERS[place % len(MARKERS)]
        return {"color": color, "marker": marker, "linestyle": style, "linewidth": 1.2, "markersize": 4}
