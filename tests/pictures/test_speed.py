from dataclasses import replace

import pytest

from hf_cyclprune.inference.timings import Timing
from hf_cyclprune.pictures.speed import draw_speed
from tests.inference.times import BENCH
from tests.pictures.figures import shown_texts


def test_a_bar_is_as_long_as_the_median_and_its_line_spans_the_quartiles():
    (axes,) = draw_speed(BENCH).axes
    assert [bar.get_width() for bar in axes.patches] == [8.0, 2.0]
    (lines,) = [found for found in axes.collections if len(found.get_segments()) == 2]
    spans = [(float(start[0]), float(end[0])) for start, end in lines.get_segments()]
    assert spans == [(7.5, 9.0), (1.5, 2.5)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dense", "sparse"]
    assert [text.get_text() for text in axes.texts] == ["8.00 ms, 1.00x", "2.00 ms, 4.00x"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first one is on top"


def test_the_machine_is_named():
    (axes,) = draw_speed(BENCH).axes
    assert axes.get_xlabel() == (
        "ms for 1 x 128 tokens: median and quartiles\nSome CPU, threads: 2"
    )


@pytest.mark.parametrize("factor", [1e-3, 1, 1e5])
def test_every_text_is_inside_the_picture(factor):
    times = [8.0, 7.9, 9.0, 1e-2, 3.3]
    timings = [Timing(f"Runtime {i}", t, t / 2, 3 * t, None) for i, t in enumerate(times)]
    timings = [
        replace(t, median=factor * t.median, low=factor * t.low, high=factor * t.high)
        for t in timings
    ]
    name = "Intel(R) Xeon(R) Platinum 8488C CPU @ 2.40GHz with a long name after it"
    figure = draw_speed(replace(BENCH, timings=timings, processor=name))
    for text, box in shown_texts(figure):
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, text
