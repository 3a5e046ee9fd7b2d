"""Colours and lines of the pictures: told apart by colour-blind readers, readable on white and on black.

The background is transparent. Each colour has a contrast of at least 3 to both white and black (WCAG 2.1, 1.4.11 asks
that of graphics), text at least 4.5, which leaves a narrow band of lightness. In it the usual colour-blind-safe
palettes no longer are: Okabe and Ito's green and purple, darkened, look alike to deuteranopes. These were searched for:
any two differ by at least 28 in CIELAB in normal vision, protanopia and deuteranopia. Colour is never alone: lines
differ in marker and dashes, parts of a bar in hatching.
"""

from __future__ import annotations

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
FLOOR = "#808080"
MARKERS = "sD^vPX<>*h"
DASHES = {"rival": "-", "bound": "--", "floor": ":", "ours": "-"}
PARTS = dict(zip(tables.PARTS, (OURS, *PEERS), strict=False))
HATCHES = ("", "//", "..", "xx", "--")

_SETTINGS: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.titlecolor": TEXT,
    "axes.edgecolor": TEXT,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "grid.color": TEXT,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "hatch.linewidth": 0.4,
    "svg.fonttype": "none",  # text stays text: small files, and it can be searched
    "svg.hashsalt": "conan_fast",  # the same figures make the same file
}


@contextmanager
def drawing() -> Iterator[None]:
    with matplotlib.rc_context(_SETTINGS):
        yield


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None} if path.suffix == ".svg" else None)


class Looks:
    """Colour, marker and dashes of each implementation, the same in all pictures of a suite."""

    def __init__(self, names: list[str]) -> None:
        self._places = {name: i for i, name in enumerate(name for name in names if not name.startswith("ours"))}

    def __call__(self, name: str, role: str) -> dict[str, Any]:
        if role == "ours":
            style = "-" if name == "ours" else "-."
            return {"color": OURS, "marker": "o", "linestyle": style, "linewidth": 2.2, "zorder": 3, "markersize": 5}
        if role == "floor":
            return {"color": FLOOR, "marker": "", "linestyle": ":", "linewidth": 1.6}
        place = self._places.get(name, 0)
        return {
            "color": PEERS[place % len(PEERS)],
            "marker": MARKERS[place % len(MARKERS)],
            "linestyle": DASHES[role],
            "linewidth": 1.2,
            "markersize": 4,
        }
