"""What a run did over its optimizer steps: sparsity, the evaluations' metric, learning rate."""

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from hf_cyclprune.pictures.style import BLUE, GREEN, INK, SMALL, VERMILLION, drawing, new_figure
from hf_cyclprune.pruning.schedules import Schedule
from hf_cyclprune.reporting.metrics import PREFIX, choose_metric
from hf_cyclprune.reporting.numbers import count, number
from hf_cyclprune.reporting.run import Run

_MOST_STEPS = 2000  # of a planned line: more than the picture has pixels
_MOST_NAMES = 8  # of cycles, until their numbers must do


def draw_schedule(run: Run) -> Figure | None:
    """Sparsity, metric and learning rate over the optimizer steps; None if none is known.

    The planned sparsity is a line, what was counted are dots. Evaluations where the schedule is
    below its target are hollow: they are of a denser model than the one that is saved. A run that
    logged no evaluations shows its training loss in their place.
    """
    panels = _panels(run)
    if not panels:
        return None
    with drawing():
        heights = [height for height, _ in panels]
        figure = new_figure(sum(heights) + 0.8)
        grid = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (_, draw) in zip(grid, panels, strict=True):
            draw(axes, run)
            _mark_edges(axes, run.schedule)
        label_steps(grid[-1], last_step(run))
        if run.schedule is not None and run.schedule.num_cycles > 1:
            _name_cycles(grid[0], run.schedule)
        figure.align_ylabels(grid)
    return figure


def _panels(run: Run) -> list[tuple[float, Callable[[Axes, Run], None]]]:
    """Heights in inches, and what to draw."""
    panels: list[tuple[float, Callable[[Axes, Run], None]]] = []
    if run.schedule is not None or run.points("sparsity"):
        panels.append((1.7, _draw_sparsity))
    if run.points(choose_curve([run])):
        panels.append((1.2, _draw_curve))
    if run.points("learning_rate"):
        panels.append((0.8, _draw_learning_rate))
    return panels


def choose_curve(runs: Sequence[Run]) -> str:
    """What the runs logged to be judged by: a value of their evaluations, or the training loss."""
    return choose_metric(run.logged_metrics for run in runs) or "loss"


def metric_label(name: str) -> str:
    """A metric's name for people.

    >>> metric_label("eval_matthews_correlation"), metric_label("eval_loss"), metric_label("loss")
    ('matthews correlation', 'evaluation loss', 'training loss')
    """
    whole = {"eval_loss": "evaluation loss", "loss": "training loss"}
    return whole.get(name, name.removeprefix(PREFIX).replace("_", " "))


def last_step(run: Run) -> int:
    """The last optimizer step of the whole run, as far as it is known."""
    logged: list[int] = [entry.get("step", 0) for entry in run.log_history]
    return max(1, run.record.total_steps or 1, *logged)


def planned(schedule: Schedule) -> tuple[list[int], list[float]]:
    """Optimizer steps and the sparsity after them in %; both sides of every edge are among them."""
    total = schedule.total_steps
    steps = set(range(1, total + 1, -(-total // _MOST_STEPS))) | {total}
    steps |= {t for edge in schedule.edges[1:-1] for t in (edge, edge + 1)}
    return sorted(steps), [100 * schedule.sparsity_at(t) for t in sorted(steps)]


def counted(run: Run) -> tuple[list[int], list[float]]:
    """Optimizer steps and the logged sparsity after them in %."""
    points = run.points("sparsity")
    return [t for t, _ in points], [100 * value for _, value in points]


def label_steps(axes: Axes, total_steps: int) -> None:
    """The x axis of optimizer steps, from 0 to the run's end."""
    axes.set_xlabel("optimizer step")
    axes.set_xlim(0, total_steps)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda t, _: count(round(t))))


def label_sparsity(axes: Axes) -> None:
    """The y axis of sparsity, from 0."""
    axes.set_ylabel("sparsity (%)")
    axes.set_ylim(0, max(1.0, min(100.0, 1.06 * axes.dataLim.ymax)))
    axes.yaxis.set_major_locator(MaxNLocator(5))


def _draw_sparsity(axes: Axes, run: Run) -> None:
    if run.schedule is not None:
        axes.plot(*planned(run.schedule), color=BLUE, linewidth=0.9, label="planned")
    steps, values = counted(run)
    if steps:
        axes.plot(steps, values, "o", color=VERMILLION, label="counted", clip_on=False)
        _name_last(axes, steps[-1], values[-1], f"{values[-1]:.1f} %")
    label_sparsity(axes)
    _add_key(axes, lift=0.2 if run.schedule is None or run.schedule.num_cycles == 1 else 1.6)


def _draw_curve(axes: Axes, run: Run) -> None:
    """Filled at the target sparsity, hollow below it."""
    name = choose_curve([run])
    points = run.points(name)
    axes.plot(*zip(*points, strict=True), color=GREEN, linewidth=0.8, zorder=1)
    has_evaluations = name != "loss"
    is_filled = [not has_evaluations or _is_at_target(run, t) for t, _ in points]
    for fill, wanted, label in (
        (GREEN, True, "evaluated at the target sparsity"),
        ("none", False, "below it"),
    ):
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
    """Points of one cycle are joined: between two cycles it may have been anywhere."""
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
    """A small number, short.

    >>> _power(0.00025), _power(0.0)
    ('2.5e-4', '0')
    """
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value else "0"


def _is_at_target(run: Run, t: int) -> bool:
    """Where the schedule is, or where as many zeros were counted: a climb's last step may round."""
    if run.schedule is None:
        return True
    target, planned_at = run.schedule.sparsity, run.schedule.sparsity_at
    zeros = dict(run.points("sparsity"))
    at_target = {zeros[step] for step in zeros if planned_at(max(step, 1)) == target}
    return planned_at(max(t, 1)) == target or zeros.get(t) in at_target


def _mark_edges(axes: Axes, schedule: Schedule | None) -> None:
    for edge in schedule.edges[1:-1] if schedule is not None else ():
        axes.axvline(edge, color=INK, linewidth=0.6, linestyle=(0, (1, 2)), zorder=0)


def _name_cycles(axes: Axes, schedule: Schedule) -> None:
    """Above the axes, in the middle of every cycle; of very many only some."""
    k = schedule.num_cycles
    for c in range(0, k, -(-k // 20)):
        middle = (schedule.edges[c] + schedule.edges[c + 1]) / 2
        text = f"cycle {c + 1}" if k <= _MOST_NAMES else str(c + 1)
        axes.text(
            middle, 1.02, text, transform=axes.get_xaxis_transform(), ha="center", va="bottom",
            fontsize=SMALL,
        )  # fmt: skip


def _name_last(axes: Axes, t: int, value: float, text: str) -> None:
    """The number of the last mark, right of it."""
    axes.annotate(
        text, (t, value), xytext=(5, 0), textcoords="offset points", va="center", fontsize=SMALL,
        annotation_clip=False,
    )  # fmt: skip


def _add_key(axes: Axes, lift: float = 0.2) -> None:
    """What the marks are, above the axes by `lift` lines."""
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1.0), ncols=3, borderaxespad=lift, handlelength=1.6,
        columnspacing=1.4,
    )  # fmt: skip
