"""Draw a sparsity report: the density of every matrix, and the recovered shares of the cycles."""

from collections.abc import Callable, Sequence
from itertools import takewhile

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hf_cyclprune.pictures.style import BLUE, GREEN, INK, SMALL, VERMILLION, drawing, new_figure
from hf_cyclprune.reporting.cycles import CycleReport
from hf_cyclprune.reporting.report import SparsityReport

_KINDS = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attention output",
    "intermediate.dense": "intermediate",
    "output.dense": "output",
}
"""Short names of the matrices of BERT; those of others are shown as they are."""

_SERIES: tuple[tuple[str, str, str, Callable[[CycleReport], float | None]], ...] = (
    ("recovered at the edge", VERMILLION, "o", lambda c: c.recovered_share_at_edge),
    ("recovered at the cycle's end", BLUE, "s", lambda c: c.recovered_share_at_end),
    ("mask change (Jaccard distance)", GREEN, "^", lambda c: c.mask_change),
)
_MOST_LEVEL = 5  # cycles with horizontal numbers; of more cycles they are vertical
_MOST_NUMBERED = 11  # cycles with numbers; of more cycles only the zeros have them
_MOST_LABELS = 26  # layers with a label


def draw_density(report: SparsityReport) -> Figure:
    """Draw a map of the share of kept weights in %: a row for each kind, a column for each layer.

    Its colours run from 0 to a round number above the largest share, so that equal matrices look
    equal; numbers are in the cells if they fit. A cell without a matrix is empty.
    """
    layers, kinds, shares = _density(report)
    with drawing():
        figure = new_figure(max(0.27 * len(kinds), 1.15) + 0.6)
        axes = figure.subplots()
        colours = matplotlib.colormaps["cividis"].with_extremes(bad="none")
        largest = np.nanmax(shares)
        top = next((top for top in (10, 25, 50) if 1.2 * largest <= top), 100)
        image = axes.imshow(shares, cmap=colours, vmin=0, vmax=top, aspect="auto")
        bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.015, aspect=12)
        bar.outline.set_edgecolor(INK)
        bar.set_label("density (% kept)")
        axes.spines[:].set_visible(True)
        axes.set_xlabel("layer" if "-" not in layers else "layer (-: outside of the layers)")
        shown = range(0, len(layers), -(-len(layers) // _MOST_LABELS))
        axes.set_xticks(shown, [layers[x] for x in shown])
        axes.set_yticks(range(len(kinds)), _short(kinds))
        axes.tick_params(length=0)
        figure.draw_without_rendering()  # only now is it known how wide a cell is
        _write_cells(axes, shares, image.to_rgba(np.array(shares)))
    return figure


def _density(report: SparsityReport) -> tuple[list[str], list[str], list[list[float]]]:
    """Return layers, kinds, and a row of shares in % for every kind; NaN without a matrix."""
    kinds = list(report.by_kind())
    numbers = {w.layer for w in report.weights}
    layers = sorted(n for n in numbers if n is not None) + [None] * (None in numbers)
    cells = report.grouped(lambda w: f"{w.kind} {w.layer}")
    kept = {name: 100 * (1 - group.sparsity) for name, group in cells.items()}
    shares = [[kept.get(f"{kind} {layer}", float("nan")) for layer in layers] for kind in kinds]
    return ["-" if n is None else str(n) for n in layers], kinds, shares


def _short(kinds: Sequence[str]) -> list[str]:
    """Return the names of the rows, without the start that all of them share.

    >>> _short(["albert_layers.0.ffn", "albert_layers.0.ffn_output", "attention.self.query"][:2])
    ['ffn', 'ffn_output']
    """
    paths = [kind.split(".")[:-1] for kind in kinds] if len(kinds) > 1 else [[]]
    common = len(list(takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))))
    return [_KINDS.get(kind, ".".join(kind.split(".")[common:])) for kind in kinds]


def _write_cells(axes: Axes, shares: list[list[float]], colours: NDArray[np.float64]) -> None:
    """Write the numbers with as many decimals as there is room for, in black or white."""
    room = 0.9 * axes.get_window_extent().width / len(shares[0])
    for decimals in (1, 0):
        texts = [
            axes.text(
                x, y, share_text(share, decimals), ha="center", va="center",
                color=_readable_on(colours[y, x]), fontsize=SMALL - 0.5,
            )
            for (y, x), share in np.ndenumerate(np.array(shares))
            if not np.isnan(share)
        ]  # fmt: skip
        wide = [text for text in texts if text.get_window_extent().width > room]
        is_enough = decimals == 0 and len(wide) < 0.2 * len(texts)  # all but some "100"
        for text in wide if is_enough or not wide else texts:
            text.remove()
        if is_enough or not wide:
            return


def share_text(value: float, decimals: int) -> str:
    """Write a number in % in few characters; "0" means zero, and not a number that rounds to it.

    >>> share_text(12.34, 1), share_text(0.0, 1), share_text(0.04, 1), share_text(0.0004, 2)
    ('12.3', '0', '<0.1', '<0.01')
    """
    if value == 0:
        return "0"
    least = 10.0**-decimals
    return f"{value:.{decimals}f}" if value >= least / 2 else f"<{least:.{decimals}f}"


def _readable_on(colour: NDArray[np.float64]) -> str:
    """Return black or white, whichever has more contrast with a colour."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if luminance > 0.179 else "white"  # where both have the same contrast


def draw_recovery(report: SparsityReport) -> Figure | None:
    """Draw recovered shares and mask change of every cycle in %; None without a second cycle.

    The first cycle has nothing to recover. A value that was not measured is left out; a zero is a
    mark at zero with its number. If weights were exchanged at the edges, a second part shows what
    their exchange was predicted to do to the loss.
    """
    cycles = [c for c in report.cycles if any(get(c) is not None for *_, get in _SERIES)]
    if not cycles:
        return None
    # A run that was resumed with another schedule may have had a cycle twice.
    places = range(cycles[0].cycle, cycles[0].cycle + len(cycles))
    has_exchanges = any(c.benefit is not None for c in cycles)
    with drawing():
        figure = new_figure(4.3 if has_exchanges else 2.5)
        parts = figure.subplots(1 + has_exchanges, squeeze=False, sharex=True)[:, 0]
        axes = parts[0]
        for offset, (label, colour, marker, get) in zip((-0.27, 0, 0.27), _SERIES, strict=True):
            values = [(place, get(c)) for place, c in zip(places, cycles, strict=True)]
            marks = [(place + offset, 100 * v) for place, v in values if v is not None]
            if marks:
                _draw_marks(axes, marks, label, colour, marker)
                _write_numbers(axes, marks, len(cycles))
        if has_exchanges:
            _draw_exchanges(parts[1], places, cycles)
        axes.set_ylabel("recovered share,\nmask change (%)")
        parts[-1].set_xlabel("cycle")
        axes.set_xticks(list(places), [str(c.cycle) for c in cycles])
        axes.set_xlim(places[0] - 0.6, places[-1] + 0.6)
        room = 1.15 if len(cycles) <= _MOST_LEVEL else 1.25
        axes.set_ylim(0, max(1.0, room * axes.dataLim.ymax))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, handlelength=1)
    return figure


def _draw_marks(
    axes: Axes, marks: Sequence[tuple[float, float]], label: str, colour: str, marker: str
) -> None:
    x, y = zip(*marks, strict=True)
    axes.vlines(x, 0, y, color=colour, linewidth=1.3)
    axes.plot(x, y, marker, color=colour, label=label, markersize=5, clip_on=False)


def _draw_exchanges(axes: Axes, places: Sequence[int], cycles: Sequence[CycleReport]) -> None:
    """Draw the mean benefit of the weights that came back, and the mean cost of those that went."""
    pairs = [(x, c.benefit, c.cost) for x, c in zip(places, cycles, strict=True)]
    known = [(x, gain, loss) for x, gain, loss in pairs if gain is not None and loss is not None]
    gains, losses = [(x - 0.14, gain) for x, gain, _ in known], [(x + 0.14, c) for x, _, c in known]
    _draw_marks(axes, gains, "benefit of a returned weight", BLUE, "o")
    _draw_marks(axes, losses, "cost of the one it displaced", VERMILLION, "s")
    axes.axhline(0, color=INK, linewidth=0.6)
    axes.set_ylabel("predicted change\nof the loss")
    axes.yaxis.set_major_formatter("{x:.2g}")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, handlelength=1)


def _write_numbers(axes: Axes, marks: Sequence[tuple[float, float]], num_cycles: int) -> None:
    """Write the numbers above the marks; of very many cycles only the zeros."""
    for x, y in marks:
        if y == 0 or num_cycles <= _MOST_NUMBERED:
            axes.annotate(
                share_text(y, 2 if y < 1 else 1), (x, y), xytext=(0, 5), va="bottom", ha="center",
                textcoords="offset points", fontsize=SMALL,
                rotation=0 if num_cycles <= _MOST_LEVEL or y == 0 else 90,
            )  # fmt: skip
