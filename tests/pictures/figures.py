"""What to look for in a figure."""

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from hf_cyclprune.config import PruningConfig
from tests.reporting.runs import CYCLICAL, make_run


def labelled(axes, label):
    (line,) = [line for line in axes.get_lines() if line.get_label() == label]
    return [tuple(point) for point in line.get_xydata()]


def strings(figure):
    return [text.get_text() for text in figure.findobj(Text)]


def shown_texts(figure):
    """Texts that are drawn, and where; ticks outside of the axes are not."""
    figure.draw_without_rendering()
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                is_inside = low - 1e-9 <= tick.get_loc() <= high + 1e-9 and axis.get_visible()
                hidden |= set() if is_inside else {id(tick.label1), id(tick.label2)}
    return [
        (text, text.get_window_extent())
        for text in figure.findobj(Text)
        if text.get_text().strip() and text.get_visible() and id(text) not in hidden
    ]


def contrast(a, b):
    """https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio"""

    def luminance(colour):
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)
        ]
        return np.dot(linear, [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def eight_runs():
    configs = [
        None,
        CYCLICAL,
        PruningConfig(sparsity=0.8, num_cycles=1),
        PruningConfig(pattern="2:4", num_cycles=2),
        PruningConfig(sparsity=0.95, num_cycles=8),
        PruningConfig(method="rising", sparsity=0.8, reset_ratio=0.5),
        PruningConfig(sparsity=0.9, ramp="linear"),
        PruningConfig(sparsity=0.7),
    ]
    names = ["dense", "a-name-that-is-longer-than-there-is-any-room-for-in-a-picture-80"]
    names += [f"sst2-gradual-restarts-80-lr3e-{i}" for i in range(6)]
    return [
        make_run(name, config, 200 + 100 * i)
        for i, (name, config) in enumerate(zip(names, configs, strict=True))
    ]
