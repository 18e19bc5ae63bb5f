"""Draw one run over its optimizer steps: sparsity, metric or loss, and learning rate."""

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from hf_cyclprune.pictures.style import BLUE, GREEN, INK, SMALL, VERMILLION, drawing, new_figure
from hf_cyclprune.pruning.schedules import Schedule
from hf_cyclprune.reporting.metrics import PREFIX, choose_metric
from hf_cyclprune.reporting.numbers import count, number
from hf_cyclprune.reporting.run import Run

_MOST_STEPS = 2000  # in a planned line: more than the picture has pixels
_MOST_NAMES = 8  # cycles that are called "cycle 1"; of more, only the numbers are shown


def draw_schedule(run: Run) -> Figure | None:
    """Draw sparsity, metric and learning rate over the optimizer steps; None if none is known.

    A line shows the planned sparsity, and dots the sparsity that was counted. Evaluations where the
    schedule is below its target are hollow, since the model was denser than the one that is saved.
    A run without evaluations shows its training loss instead.
    """
    panels: list[tuple[float, Callable[[Axes, Run], None]]] = []  # heights in inches
    if run.schedule is not None or run.points("sparsity"):
        panels.append((1.7, _draw_sparsity))
    if run.points(choose_curve([run])):
        panels.append((1.2, _draw_curve))
    if run.points("learning_rate"):
        panels.append((0.8, _draw_learning_rate))
    if not panels:
        return None
    with drawing():
        heights = [height for height, _ in panels]
        figure = new_figure(sum(heights) + 0.8)
        grid = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (_, draw) in zip(grid, panels, strict=True):
            draw(axes, run)
            for edge in run.schedule.edges[1:-1] if run.schedule is not None else ():
                axes.axvline(edge, color=INK, linewidth=0.6, linestyle=(0, (1, 2)), zorder=0)
        label_steps(grid[-1], last_step(run))
        if run.schedule is not None and run.schedule.num_cycles > 1:
            _name_cycles(grid[0], run.schedule)
        figure.align_ylabels(grid)
    return figure


def choose_curve(runs: Sequence[Run]) -> str:
    """Choose the curve to compare runs by: a metric of their evaluations, or the training loss."""
    return choose_metric(run.logged_metrics for run in runs) or "loss"


def metric_label(name: str) -> str:
    """Write the name of a metric for people.

    >>> metric_label("eval_matthews_correlation"), metric_label("eval_loss"), metric_label("loss")
    ('matthews correlation', 'evaluation loss', 'training loss')
    """
    whole = {"eval_loss": "evaluation loss", "loss": "training loss"}
    return whole.get(name, name.removeprefix(PREFIX).replace("_", " "))


def last_step(run: Run) -> int:
    """Return the last optimizer step of the run, or else the last that was logged; at least 1."""
    logged: list[int] = [entry.get("step", 0) for entry in run.record.log_history]
    return max(1, run.record.total_steps or 1, *logged)


def planned(schedule: Schedule) -> tuple[list[int], list[float]]:
    """Return optimizer steps, both sides of every edge included, and the planned sparsity in %."""
    total = schedule.total_steps
    steps = set(range(1, total + 1, -(-total // _MOST_STEPS))) | {total}
    steps |= {t for edge in schedule.edges[1:-1] for t in (edge, edge + 1)}
    return sorted(steps), [100 * schedule.sparsity_at(t) for t in sorted(steps)]


def logged(run: Run, name: str, scale: float = 1.0) -> tuple[list[int], list[float]]:
    """Return the optimizer steps at which a value was logged, and the values times `scale`."""
    points = run.points(name)
    return [t for t, _ in points], [scale * value for _, value in points]


def label_steps(axes: Axes, total_steps: int) -> None:
    """Make the x axis one of optimizer steps, from 0 to `total_steps`."""
    axes.set_xlabel("optimizer step")
    axes.set_xlim(0, total_steps)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda t, _: count(round(t))))


def label_sparsity(axes: Axes) -> None:
    """Make the y axis one of sparsity, from 0."""
    axes.set_ylabel("sparsity (%)")
    axes.set_ylim(0, max(1.0, min(100.0, 1.06 * axes.dataLim.ymax)))
    axes.yaxis.set_major_locator(MaxNLocator(5))


def _draw_sparsity(axes: Axes, run: Run) -> None:
    if run.schedule is not None:
        axes.plot(*planned(run.schedule), color=BLUE, linewidth=0.9, label="planned")
    steps, values = logged(run, "sparsity", 100)  # in %
    if steps:
        axes.plot(steps, values, "o", color=VERMILLION, label="counted", clip_on=False)
        _name_last(axes, steps[-1], values[-1], f"{values[-1]:.1f} %")
    label_sparsity(axes)
    _add_key(axes, lift=0.2 if run.schedule is None or run.schedule.num_cycles == 1 else 1.6)


def _draw_curve(axes: Axes, run: Run) -> None:
    """Draw the metric, with marks that are filled at the target sparsity and hollow below it."""
    name = choose_curve([run])
    points = run.points(name)
    axes.plot(*zip(*points, strict=True), color=GREEN, linewidth=0.8, zorder=1)
    has_evaluations = name != "loss"
    is_filled = [not has_evaluations or _is_at_target(run, t) for t, _ in points]
    kinds = {True: (GREEN, "evaluated at the target sparsity"), False: ("none", "below it")}
    for wanted, (fill, label) in kinds.items():
        chosen = [p for p, filled in zip(points, is_filled, strict=True) if filled is wanted]
        if chosen:
            x, y = zip(*chosen, strict=True)
            axes.plot(x, y, "s", color=GREEN, markerfacecolor=fill, label=label, clip_on=False)
    axes.set_ylabel(metric_label(name).replace(" ", "\n"))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.margins(y=0.12)
    if not has_evaluations:
        return
    _name_last(axes, *points[-1], f"{number(points[-1][1])}")
    saved = [p for p in points if p[0] == run.record.weights_step]
    if saved and saved[0] != points[-1]:
        label = f"saved, {number(saved[0][1])}"
        axes.plot(*saved[0], "o", color=INK, markerfacecolor="none", markersize=9, label=label)
    if saved or not all(is_filled):
        _add_key(axes)


def _draw_learning_rate(axes: Axes, run: Run) -> None:
    """Draw the learning rate; a line joins the points of one cycle, but not those of two."""
    cycles: dict[int, list[tuple[int, float]]] = {}
    for t, value in run.points("learning_rate"):
        cycles.setdefault(run.schedule.cycle(t) if run.schedule else 0, []).append((t, value))
    for points in cycles.values():
        x, y = zip(*points, strict=True)
        axes.plot(x, y, "D-", color=INK, linewidth=0.8, markersize=2.5, clip_on=False)
    axes.set_ylabel("learning\nrate")
    axes.set_ylim(0, 1.1 * max(axes.dataLim.ymax, 1e-12))
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))


def _power(value: float) -> str:
    """Write a small number in few characters.

    >>> _power(0.00025), _power(0.0)
    ('2.5e-4', '0')
    """
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value else "0"


def _is_at_target(run: Run, t: int) -> bool:
    """Return whether the schedule is at its target after step t, or as many zeros were counted.

    By rounding, the last step of a climb may already have all zeros.
    """
    if run.schedule is None:
        return True
    target, planned_at = run.schedule.sparsity, run.schedule.sparsity_at
    zeros = dict(run.points("sparsity"))
    at_target = {zeros[step] for step in zeros if planned_at(max(step, 1)) == target}
    return planned_at(max(t, 1)) == target or zeros.get(t) in at_target


def _name_cycles(axes: Axes, schedule: Schedule) -> None:
    """Write the names of the cycles above the axes; of very many cycles only some."""
    k = schedule.num_cycles
    for c in range(0, k, -(-k // 20)):
        middle = (schedule.edges[c] + schedule.edges[c + 1]) / 2
        text = f"cycle {c + 1}" if k <= _MOST_NAMES else str(c + 1)
        axes.text(
            middle, 1.02, text, transform=axes.get_xaxis_transform(), ha="center", va="bottom",
            fontsize=SMALL,
        )  # fmt: skip


def _name_last(axes: Axes, t: int, value: float, text: str) -> None:
    """Write the number of the last mark to its right."""
    axes.annotate(
        text, (t, value), xytext=(5, 0), textcoords="offset points", va="center", fontsize=SMALL,
        annotation_clip=False,
    )  # fmt: skip


def _add_key(axes: Axes, lift: float = 0.2) -> None:
    """Put the key to the marks above the axes, `lift` lines high."""
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1.0), ncols=3, borderaxespad=lift, handlelength=1.6,
        columnspacing=1.4,
    )  # fmt: skip
