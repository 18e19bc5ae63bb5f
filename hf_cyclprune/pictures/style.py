"""The look of the pictures: colours that can be read on a white and on a dark page.

The background is transparent. A line needs a contrast of 3:1 with what is behind it and text 4.5:1
(https://www.w3.org/TR/WCAG22/#contrast-minimum); no colour has 4.5:1 with both white and GitHub's
#0d1117. Their contrast is 18.9:1, so the most that a colour can have with both is its square root,
4.35:1. The hues are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), with a luminance in
that middle. Colour is never alone: each comes with its own marker and dash.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hf_cyclprune.files import whole_file

INK = "#777b82"
BLUE, VERMILLION, GREEN = "#1b7fc4", "#d55e00", "#009e73"
COLOURS = (BLUE, VERMILLION, GREEN, "#b5609a", "#a97c00", "#2f9aa8", "#7a6ff0", INK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))

WIDTH = 7.0  # inches, shown as 700 px of a page: a point is 1.4 px
DPI = 200  # two pixels for each px of the page
SMALL = 8.0  # points

_STYLE: dict[Any, Any] = {
    "figure.facecolor": "none",
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.05,
    "axes.facecolor": "none",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
    "text.color": INK,
    "text.parse_math": False,  # the name of a folder may have dollar signs
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
}


class Look(NamedTuple):
    """Colour, marker and dash of one of several runs."""

    colour: str
    marker: str
    dash: Any


def looks(count: int) -> list[Look]:
    """Return `count` looks, of which no two are the same (up to 72)."""
    return list(islice(map(Look, cycle(COLOURS), cycle(MARKERS), cycle(DASHES)), count))


@contextmanager
def drawing() -> Iterator[None]:
    """Use our style for the artists made inside, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context():  # puts back what it found
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def new_figure(height: float) -> Figure:
    """Return an empty transparent figure, `height` inches high, that pyplot does not know."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_picture(figure: Figure, path: Path, dpi: float = DPI) -> Path:
    """Write the figure as a whole PNG file, with the same bytes every time; return `path`."""
    with drawing(), whole_file(path) as unfinished, unfinished.open("wb") as file:
        # Without the entry that names the version of matplotlib; a date is not written.
        figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    return path
