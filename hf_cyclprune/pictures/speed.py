"""Draw how long a model takes in each runtime."""

from matplotlib.figure import Figure

from hf_cyclprune.inference.timings import Bench
from hf_cyclprune.pictures.style import BLUE, INK, SMALL, drawing, new_figure

_LONGEST = 60  # characters of the name of a CPU


def draw_speed(bench: Bench) -> Figure:
    """Draw a bar as long as the median time of each runtime, and a line between its quartiles.

    Beside it stand the median, and how many times as fast as the dense model that is.
    """
    timings = bench.timings
    with drawing():
        figure = new_figure(0.3 * len(timings) + 1.0)
        axes = figure.subplots()
        medians = [timing.median for timing in timings]
        below = [timing.median - timing.low for timing in timings]
        above = [timing.high - timing.median for timing in timings]
        line = {"ecolor": INK, "elinewidth": 1.3, "capsize": 3}
        rows = range(len(timings))
        axes.barh(rows, medians, 0.6, xerr=(below, above), color=BLUE, error_kw=line)
        for y, timing in enumerate(timings):
            text = f"{timing.median:.2f} ms, {bench.speed_of(timing):.2f}x"
            axes.annotate(
                text, (timing.high, y), xytext=(7, 0), textcoords="offset points", va="center",
                fontsize=SMALL,
            )  # fmt: skip
        axes.set_yticks(rows, [timing.name for timing in timings])
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0, 1.25 * max(timing.high for timing in timings))
        where = f"{bench.processor[:_LONGEST]}, threads: {bench.num_threads}"
        size = f"{bench.batch_size} x {bench.seq_length} tokens"
        axes.set_xlabel(f"ms for {size}: median and quartiles\n{where}")
    return figure
