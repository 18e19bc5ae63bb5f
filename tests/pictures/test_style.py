import itertools
import os
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.image import imread
from matplotlib.lines import Line2D

from hf_cyclprune.config import PruningConfig
from hf_cyclprune.pictures import style
from hf_cyclprune.pictures.comparison import draw_comparison
from hf_cyclprune.pictures.curves import draw_schedule
from hf_cyclprune.pictures.plots import plot_runs, save_pictures
from hf_cyclprune.pictures.shares import draw_density, draw_recovery
from hf_cyclprune.reporting.cycles import CycleReport
from tests.pictures.figures import contrast, eight_runs, shown_texts
from tests.reporting.runs import CYCLES, CYCLICAL, log, make_report, make_run, run_of, save_run

PAGES = ("#ffffff", "#0d1117")


FIGURES = {
    "schedule": lambda: draw_schedule(make_run(config=CYCLICAL)),
    "schedule of eight cycles": lambda: draw_schedule(
        make_run(config=PruningConfig(sparsity=0.95, num_cycles=8), total_steps=120_000, every=1000)
    ),
    "schedule of thirty cycles": lambda: draw_schedule(
        make_run(config=PruningConfig(sparsity=0.95, num_cycles=30), total_steps=3000)
    ),
    "schedule with the best model": lambda: draw_schedule(
        run_of("a", CYCLICAL, log_history=log(CYCLICAL, 200), total_steps=200, weights_step=100)
    ),
    "schedule of a dense run": lambda: draw_schedule(make_run()),
    "density of 24 layers": lambda: draw_density(make_report(24)),
    "density of 48 layers": lambda: draw_density(make_report(48, zeros=lambda n, i: n)),
    "density of equal matrices": lambda: draw_density(make_report(12, zeros=lambda n, i: 50)),
    "density of other names": lambda: draw_density(
        make_report(1, ["albert_layers.0.attention.query", "albert_layers.0.ffn_output"])
    ),
    "recovery": lambda: draw_recovery(make_report(cycles=CYCLES)),
    "recovery of eight cycles": lambda: draw_recovery(
        make_report(cycles=[CycleReport(c, c, 0.5, c, 0.39, 0.004, 0.5) for c in range(2, 9)])
    ),
    "comparison of eight": lambda: draw_comparison(eight_runs()),
    "comparison of seeds": lambda: draw_comparison(
        [make_run(f"sst2-seed{i}", CYCLICAL, 200 + i) for i in range(3)] + [make_run("dense")]
    ),
    "comparison without evaluations": lambda: draw_comparison(
        [make_run(name, CYCLICAL, evaluate=1000) for name in "ab"]
    ),
}


@pytest.fixture(scope="module", params=FIGURES)
def figure(request):
    return FIGURES[request.param]()


def test_no_text_is_cut_off_or_on_another_one(figure):
    texts = shown_texts(figure)
    assert len(texts) > 5
    for text, box in texts:
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, text.get_text()
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, text.get_text()
    for (a, box_a), (b, box_b) in itertools.combinations(texts, 2):
        overlap = box_a.padded(-1).overlaps(box_b.padded(-1))
        assert not overlap, (a.get_text(), b.get_text())


def test_everything_can_be_read_on_white_and_on_dark(figure):
    in_cells = {id(t) for axes in figure.axes if axes.images for t in axes.texts}
    for text, _ in shown_texts(figure):
        if id(text) not in in_cells:  # 4.35 is the most that is possible on both
            assert min(contrast(text.get_color(), page) for page in PAGES) > 4.2, text.get_text()
    for line in figure.findobj(Line2D):
        if line.get_alpha() is None:  # the seeds behind their mean
            assert min(contrast(line.get_color(), page) for page in PAGES) >= 3
    for stems in figure.findobj(LineCollection):
        for colour in stems.get_colors() if len(stems.get_segments()) else ():
            assert min(contrast(colour, page) for page in PAGES) >= 3


def test_every_axis_has_a_label(figure):
    for axes in figure.axes:
        is_rows = len(axes.get_yticklabels()) and axes.get_yticklabels()[0].get_text().isascii()
        has_names = any(t.get_text()[:1].isalpha() for t in axes.get_yticklabels())
        assert axes.get_ylabel() or (is_rows and has_names)
    assert any(axes.get_xlabel() for axes in figure.axes)


def test_the_colours_are_many_and_never_alone():
    assert all(contrast(c, page) >= 3 for c in style.COLOURS for page in PAGES)
    looks = style.looks(72)
    assert len({(look.colour, look.marker) for look in looks}) == 72
    first = looks[: len(style.COLOURS)]
    assert len({look.colour for look in first}) == len({look.marker for look in first}) == 8


def test_a_picture_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = save_run(tmp_path / "run", make_run(config=CYCLICAL))
    path = save_pictures(folder, tmp_path / "out")["schedule"]
    before = path.read_bytes()

    def fail(self, file, **options):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="No space"):
        save_pictures(folder, tmp_path / "out")
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["schedule.png"]


def test_the_same_run_gives_the_same_bytes_whatever_the_users_style(tmp_path):
    folder = save_run(tmp_path / "run", make_run(config=CYCLICAL))
    path = save_pictures(folder, tmp_path / "a")["schedule"]
    style = {
        "savefig.facecolor": "white",
        "savefig.bbox": "tight",
        "font.size": 30,
        "axes.facecolor": "black",
        "text.usetex": True,
    }
    with matplotlib.rc_context(style):
        again = save_pictures(folder, tmp_path / "b")["schedule"]
        assert matplotlib.rcParams["font.size"] == 30
    assert path.read_bytes() == again.read_bytes()
    assert b"Software" not in path.read_bytes()
    assert b"matplotlib" not in path.read_bytes().lower()


def test_pictures_are_transparent_and_as_large_as_asked(tmp_path):
    folder = save_run(tmp_path, make_run(config=CYCLICAL))
    for dpi in (200, 100):
        pixels = imread(save_pictures(folder, tmp_path, dpi=dpi)["schedule"])
        assert pixels.shape[1:] == (7 * dpi, 4)
        assert np.all(pixels[[0, 0, -1, -1], [0, -1, 0, -1], 3] == 0)
        assert np.mean(pixels[:, :, 3] == 0) > 0.8


def test_the_style_and_pyplot_are_left_alone(tmp_path, monkeypatch):
    folder = save_run(tmp_path / "run", make_run(config=CYCLICAL))
    other = save_run(tmp_path / "other", make_run())
    names = [name for name in matplotlib.rcParams if name != "backend"]  # reading it chooses one
    before = {name: matplotlib.rcParams[name] for name in names}
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # an import of it fails
    plot_runs([folder], tmp_path / "out")
    plot_runs([folder, other], tmp_path / "out")
    assert {name: matplotlib.rcParams[name] for name in names} == before
