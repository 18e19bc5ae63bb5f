"""Compare several runs: how each ended, at which sparsity, and how it got there."""

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from math import sqrt
from statistics import mean, stdev
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hf_cyclprune.pictures.curves import (
    choose_curve,
    label_sparsity,
    label_steps,
    last_step,
    logged,
    metric_label,
    planned,
)
from hf_cyclprune.pictures.style import DASHES, SMALL, Look, drawing, looks, new_figure
from hf_cyclprune.reporting.metrics import choose_metric
from hf_cyclprune.reporting.numbers import number
from hf_cyclprune.reporting.run import Run

_LONGEST = 36  # characters in a name
_COLUMNS = (46, 60)  # points to the right of the axes: end of the sparsity, start of the metric
_MOST_MARKS = 7  # on one curve
Points = tuple[Sequence[float], Sequence[float]]


class Row(NamedTuple):
    """One run, or several whose names differ in the seed only."""

    name: str
    runs: tuple[Run, ...]
    outcomes: tuple[tuple[float | None, float | None], ...]
    """Sparsity and metric of each run; None where unknown."""

    @property
    def values(self) -> list[float]:
        """The metric of each run that was evaluated."""
        return [value for _, value in self.outcomes if value is not None]

    @property
    def sparsity_text(self) -> str:
        """The mean sparsity in %, if it is known for all runs."""
        known = [sparsity for sparsity, _ in self.outcomes if sparsity is not None]
        return f"{100 * mean(known):.1f} %" if len(known) == len(self.runs) else "unknown"

    @property
    def value_text(self) -> str:
        """The metric; for several runs their mean and its standard error."""
        values = self.values
        if not values:
            return "not evaluated"
        if len(values) == 1:
            return f"{number(values[0])}"
        error = stdev(values) / sqrt(len(values))
        return f"{number(mean(values))} ± {number(error)}"


def draw_comparison(runs: Sequence[Run]) -> Figure:
    """Draw a row for every run, the best on top; below them sparsity and metric over the steps.

    The metric is one that all evaluated runs have. Runs whose names differ only in "seed0",
    "seed1" and so on share a row, with a mark each, their mean and its standard error. The rows are
    the key to the curves, by colour, dash and marker. A dense run is drawn at 0 %.
    """
    metric = choose_metric(run.metric_names for run in runs)
    curve = choose_curve(runs)
    rows = _rows(runs, metric)
    panels: list[tuple[str, Callable[[Run], tuple[Points, Points]]]] = []
    if not all(run.is_dense for run in runs):
        panels.append(("sparsity (%)", _sparsity_curve))
    if any(run.points(curve) for run in runs):
        panels.append((metric_label(curve), lambda run: (logged(run, curve),) * 2))
    styles = looks(len(rows))
    heights = 0.26 * len(rows) + 0.7, 1.55 * len(panels) + 0.4 * bool(panels)
    with drawing():
        figure = new_figure(sum(heights))
        if not panels:
            _draw_rows(figure.subplots(), rows, styles, metric)
            return figure
        upper, lower = figure.subfigures(2, 1, height_ratios=heights, squeeze=False)[:, 0]
        _draw_rows(upper.subplots(), rows, styles, metric)
        grid = lower.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        for axes, (label, curves_of) in zip(grid, panels, strict=True):
            axes.set_ylabel(label)
            for row, look in zip(rows, styles, strict=True):
                _draw_curves(axes, [curves_of(run) for run in row.runs], look)
        if panels[0][1] is _sparsity_curve:
            label_sparsity(grid[0])
            grid[0].set_ylim(bottom=-0.03 * grid[0].get_ylim()[1])  # a dense run's line at 0
        label_steps(grid[-1], max(map(last_step, runs)))
        lower.align_ylabels(grid)
    return figure


def _rows(runs: Sequence[Run], metric: str | None) -> list[Row]:
    """Return the rows, the best first and those without a metric last."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_without_seed(run.name), []).append(run)
    rows = []
    for stem, members in groups.items():
        name = members[0].name if len(members) == 1 else f"{stem} ({len(members)} seeds)"
        outcomes = (run.outcome(metric or "") for run in members)
        rows.append(Row(name, tuple(members), tuple(outcomes)))
    sign = 1 if metric is not None and metric.endswith("loss") else -1
    return sorted(rows, key=lambda row: (not row.values, sign * mean(row.values or [0.0])))


def _without_seed(name: str) -> str:
    """Return the part of a name that runs with different seeds share.

    >>> _without_seed("sst2-gradual-seed12"), _without_seed("seed_1/sst2")
    ('sst2-gradual', 'sst2')
    """
    return re.sub(r"[-_./ ]*seed[-_= ]?\d+", "", name).strip("-_./ ") or name


def _draw_rows(axes: Axes, rows: Sequence[Row], styles: Sequence[Look], metric: str | None) -> None:
    for y, (row, look) in enumerate(zip(rows, styles, strict=True)):
        axes.axhline(y, color=look.colour, linestyle=look.dash, linewidth=1.1, zorder=1)
        x = row.values
        if x:
            hollow = "none" if len(x) > 1 else look.colour
            axes.plot(
                x, [y] * len(x), look.marker, color=look.colour, markersize=5.5,
                markerfacecolor=hollow,
            )  # fmt: skip
        if len(x) > 1:
            axes.plot([mean(x)], [y], "|", color=look.colour, markersize=14, markeredgewidth=2)
        _write_columns(axes, y, row.sparsity_text, row.value_text)
    label = metric_label(metric) if metric is not None else ""
    _write_columns(axes, -0.95, "sparsity", label)
    # The names of runs differ most at the end.
    names = [r.name if len(r.name) <= _LONGEST else f"…{r.name[1 - _LONGEST :]}" for r in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    if metric is None:
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
        return
    has_seeds = any(len(row.values) > 1 for row in rows)
    note = " (one mark a seed; bar: mean; ±: its standard error)" if has_seeds else ""
    axes.set_xlabel(label + note)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.margins(x=0.08)


def _write_columns(axes: Axes, y: float, sparsity: str, value: str) -> None:
    for text, offset, side in ((sparsity, _COLUMNS[0], "right"), (value, _COLUMNS[1], "left")):
        axes.annotate(
            text, (1, y), xycoords=axes.get_yaxis_transform(), xytext=(offset, 0),
            textcoords="offset points", va="center", ha=side, fontsize=SMALL,
        )  # fmt: skip


def _sparsity_curve(run: Run) -> tuple[Points, Points]:
    """Return the planned line, up to the last step that is known, and the counted marks."""
    marks = logged(run, "sparsity", 100)
    if run.schedule is not None:
        steps, values = planned(run.schedule)
        end = bisect_right(steps, max(marks[0], default=run.schedule.total_steps))
        return (steps[:end], values[:end]), marks
    if run.is_dense:
        ends = [0, last_step(run)], [0.0, 0.0]
        return ends, ends
    return marks, marks


def _draw_curves(axes: Axes, curves: Sequence[tuple[Points, Points]], look: Look) -> None:
    """Draw the curve of one run, or the mean of several, with each of them as a thin line."""
    order = 2 + DASHES.index(look.dash) / 10  # the other shows in the gaps of an equal curve
    style = {"color": look.colour, "linestyle": look.dash, "zorder": order}
    for line, _ in curves if len(curves) > 1 else ():
        axes.plot(*line, color=look.colour, linewidth=0.5, alpha=0.6)
    line, marks = (_mean_of(points) for points in zip(*curves, strict=True))
    axes.plot(*line, linewidth=1.2, **style)
    every = -(-len(marks[0]) // _MOST_MARKS) or 1
    shown = marks[0][::-every], marks[1][::-every]
    axes.plot(*shown, look.marker, markersize=4, clip_on=False, **style | {"linestyle": "none"})


def _mean_of(curves: Sequence[Points]) -> Points:
    """Return the mean of the curves over the steps that all of them have."""
    values = [dict(zip(*curve, strict=True)) for curve in curves]
    steps = sorted(set.intersection(*map(set, values)))
    return steps, [mean(v[t] for v in values) for t in steps]
