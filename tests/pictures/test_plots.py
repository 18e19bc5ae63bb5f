import dataclasses
import itertools
import json
import math
import os
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from matplotlib.lines import Line2D
from matplotlib.text import Text

from hf_cyclprune.config import PruningConfig, save_config
from hf_cyclprune.pictures import style
from hf_cyclprune.pictures.plots import (
    draw_comparison,
    draw_density,
    draw_recovery,
    draw_schedule,
    plot_runs,
    read_run,
    save_pictures,
)
from hf_cyclprune.pictures.runs import Run, choose_metric, distinct_names
from hf_cyclprune.reporting.cycles import CycleReport
from hf_cyclprune.reporting.report import SparsityReport, WeightReport
from hf_cyclprune.reporting.run import RunRecord
from hf_cyclprune.training.trainer import PruningTrainer

PAGES = ("#ffffff", "#0d1117")
BERT = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
CYCLES = (
    CycleReport(1, 10, 0.5),
    CycleReport(2, 20, 0.5, 11, 0.25, 0.0, 0.0625),
    CycleReport(3, 30, 0.5, None, None, 0.00001, 0.5),
)


def log(config, total_steps, every=10, evaluate=20):
    """What a Trainer would have logged."""
    entries = []
    for t in range(every, total_steps + 1, every):
        own = {}
        if config is not None:
            schedule = config.build_schedule(total_steps)
            own = {"sparsity": schedule.sparsity_at(t), "cycle": schedule.cycle(t) + 1}
        entries.append({"step": t, "loss": 1 / t, "learning_rate": 3e-4 / t, **own})
        if t % evaluate == 0:
            entries.append({"step": t, "eval_accuracy": 0.8 + t / 10000, "eval_loss": 0.5, **own})
    entries.append({"step": total_steps, "train_runtime": 1.0})
    return entries


def make_run(name="a", config=None, total_steps=200, **options):
    options = {"log_history": log(config, total_steps, **options), "total_steps": total_steps}
    return Run(name, config, **options)


CYCLICAL = PruningConfig(sparsity=0.8, num_cycles=4)


def make_report(layers=2, kinds=BERT, zeros=lambda layer, kind: 80 - layer, cycles=()):
    weights = [
        WeightReport(f"x.{n}.{kind}.weight", n, kind, (10, 10), zeros(n, i), ())
        for n in range(layers)
        for i, kind in enumerate(kinds)
    ]
    return SparsityReport(tuple(weights), tuple(cycles))


def save_run(folder, run):
    """A folder as transformers and we write it."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {"log_history": list(run.log_history), "max_steps": run.total_steps}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    if run.config is not None:
        save_config(run.config, folder)
    if run.report is not None:
        run.report.save(folder)
    return folder


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


FIGURES = {
    "schedule": lambda: draw_schedule(make_run(config=CYCLICAL)),
    "schedule of eight cycles": lambda: draw_schedule(
        make_run(config=PruningConfig(sparsity=0.95, num_cycles=8), total_steps=120_000, every=1000)
    ),
    "schedule of thirty cycles": lambda: draw_schedule(
        make_run(config=PruningConfig(sparsity=0.95, num_cycles=30), total_steps=3000)
    ),
    "schedule with the best model": lambda: draw_schedule(
        Run("a", CYCLICAL, None, log(CYCLICAL, 200), 200, weights_step=100)
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


def test_a_schedule_shows_the_plan_and_what_was_counted():
    run = make_run(config=CYCLICAL)
    sparsity, accuracy, rate = draw_schedule(run).axes
    plan = CYCLICAL.build_schedule(200)
    assert labelled(sparsity, "planned") == [(t, 100 * plan.sparsity_at(t)) for t in range(1, 201)]
    logged = {e["step"]: 100 * e["sparsity"] for e in run.log_history if "sparsity" in e}
    assert labelled(sparsity, "counted") == list(logged.items())
    assert [axes.get_ylabel() for axes in (sparsity, accuracy, rate)] == [
        "sparsity (%)",
        "accuracy",
        "learning\nrate",
    ]
    assert rate.get_xlabel() == "optimizer step"
    assert "80.0 %" in strings(sparsity)
    assert {"cycle 1", "cycle 4"} <= set(strings(sparsity))
    edges = [line.get_xdata()[0] for line in rate.get_lines() if line.get_linewidth() == 0.6]
    assert edges == [50, 100, 150]


def test_evaluations_below_the_target_are_hollow():
    run = make_run(config=CYCLICAL)
    plan = CYCLICAL.build_schedule(200)
    _, axes, _ = draw_schedule(run).axes
    logged = [(e["step"], e["eval_accuracy"]) for e in run.log_history if "eval_accuracy" in e]
    at_target = [p for p in logged if plan.sparsity_at(p[0]) == 0.8]
    assert 0 < len(at_target) < len(logged)
    assert labelled(axes, "evaluated at the target sparsity") == at_target
    assert labelled(axes, "below it") == [p for p in logged if p not in at_target]
    (hollow,) = [line for line in axes.get_lines() if line.get_label() == "below it"]
    assert hollow.get_markerfacecolor() == "none"


def test_the_last_step_of_a_climb_is_at_the_target_where_as_many_zeros_were_counted():
    plan = CYCLICAL.build_schedule(200)
    t = next(t for t in range(1, 200) if plan.sparsity_at(t + 1) == 0.8)
    assert plan.sparsity_at(t) < 0.8
    counted = [{"step": step, "sparsity": 0.8002} for step in (t, t + 1)]
    logged = [{"step": t, "eval_accuracy": 0.9}, {"step": t - 1, "eval_accuracy": 0.8}]
    run = Run("a", CYCLICAL, log_history=counted + logged, total_steps=200)
    axes = draw_schedule(run).axes[1]
    assert labelled(axes, "evaluated at the target sparsity") == [(t, 0.9)]
    assert labelled(axes, "below it") == [(t - 1, 0.8)]


def test_a_plan_that_was_changed_is_not_drawn():
    run = dataclasses.replace(make_run(config=CYCLICAL), is_plan_kept=False)
    assert run.schedule is None
    axes = draw_schedule(run).axes[0]
    assert "planned" not in [line.get_label() for line in axes.get_lines()]
    assert "counted" in [line.get_label() for line in axes.get_lines()]


def test_a_cycle_that_a_run_had_twice_has_two_places():
    cycles = [CycleReport(n, t, 0.8, t - 9, 0.4, 0.1, 0.2) for n, t in ((2, 20), (2, 40), (3, 60))]
    (axes,) = draw_recovery(make_report(cycles=cycles)).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["2", "2", "3"]
    (line,) = [line for line in axes.get_lines() if "edge" in line.get_label()]
    assert len(set(line.get_xdata())) == 3


def test_the_learning_rate_is_joined_inside_of_cycles_only():
    run = make_run(config=CYCLICAL)
    rate = draw_schedule(run).axes[-1]
    lines = [line.get_xydata().tolist() for line in rate.get_lines() if len(line.get_xdata()) > 2]
    logged = [[e["step"], e["learning_rate"]] for e in run.log_history if "learning_rate" in e]
    assert lines == [logged[c : c + 5] for c in (0, 5, 10, 15)]


def test_the_evaluation_of_the_saved_weights_is_marked():
    figure = draw_schedule(Run("a", CYCLICAL, None, log(CYCLICAL, 200), 200, weights_step=100))
    assert labelled(figure.axes[1], "saved, 0.8100") == [(100, 0.81)]


def test_a_long_plan_is_thinned_but_its_edges_are_kept():
    config = PruningConfig(sparsity=0.9, num_cycles=3)
    run = Run("a", config, None, (), 1_000_000)
    (axes,) = draw_schedule(run).axes
    points = dict(labelled(axes, "planned"))
    plan = config.build_schedule(1_000_000)
    assert 1000 < len(points) < 3000
    for edge in plan.edges[1:-1]:
        assert points[edge] == 90
        assert points[edge + 1] == 45
    assert 1_000_000 in points


def test_a_run_without_evaluations_shows_its_training_loss():
    run = make_run(config=CYCLICAL, evaluate=1000)
    axes = draw_schedule(run).axes[1]
    assert axes.get_ylabel() == "training\nloss"
    expected = [(e["step"], e["loss"]) for e in run.log_history if "loss" in e]
    assert [tuple(p) for p in axes.get_lines()[0].get_xydata()] == expected


def test_a_dense_run_has_no_panel_of_sparsity():
    assert [axes.get_ylabel() for axes in draw_schedule(make_run()).axes] == [
        "accuracy",
        "learning\nrate",
    ]


def test_a_run_that_holds_zeros_has_no_plan():
    run = Run("a", PruningConfig(method="hold"), None, [{"step": 5, "sparsity": 0.5}], 10)
    (axes,) = draw_schedule(run).axes
    assert [line.get_label() for line in axes.get_lines()] == ["counted"]


def test_nan_and_repeated_logs_are_left_out():
    history = [
        {"step": 5, "loss": math.nan, "learning_rate": 1.0},
        {"step": 5, "learning_rate": 2.0},
        {"step": 6, "loss": 0.5},
        {"loss": 0.25},
    ]
    run = Run("a", log_history=history)
    assert run.points("loss") == [(6, 0.5)]
    assert run.points("learning_rate") == [(5, 2.0)]


def test_nothing_logged_and_nothing_planned_is_no_picture():
    assert draw_schedule(Run("a", log_history=[{"step": 3, "train_runtime": 1.0}])) is None


def test_density_is_the_share_of_kept_weights():
    report = make_report(3, zeros=lambda n, i: 10 * i + n)
    axes, bar = draw_density(report).axes
    shown = axes.images[0].get_array()
    np.testing.assert_allclose(shown, [[100 - 10 * i - n for n in range(3)] for i in range(6)])
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0", "1", "2"]
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        "query",
        "key",
        "value",
        "attention output",
        "intermediate",
        "output",
    ]
    assert axes.get_xlabel() == "layer"
    assert bar.get_ylabel() == "density (% kept)"
    assert [t.get_text() for t in axes.texts][:4] == ["100.0", "99.0", "98.0", "90.0"]


def test_a_layer_without_a_matrix_is_an_empty_cell():
    report = make_report(2, ["attn.Wqkv", "mlp.Wi"])
    pooler = WeightReport("bert.pooler.dense.weight", None, "bert.pooler.dense", (4, 4), 4, ())
    report = SparsityReport((*report.weights[1:], pooler))
    axes, _ = draw_density(report).axes
    shown = axes.images[0].get_array()
    assert np.ma.getmaskarray(shown).tolist() == [
        [False, False, True],
        [True, False, True],
        [True, True, False],
    ]
    assert [t.get_text() for t in axes.texts] == ["20.0", "21.0", "21.0", "75.0"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0", "1", "-"]


def test_matrices_of_one_name_and_layer_are_counted_together():
    weights = [
        WeightReport("encoder.0.a", 0, "a", (10, 10), 100, ()),
        WeightReport("decoder.0.a", 0, "a", (10, 30), 0, ()),
    ]
    axes, _ = draw_density(SparsityReport(tuple(weights))).axes
    assert axes.images[0].get_array().tolist() == [[75.0]]


@pytest.mark.parametrize(("zeros", "top"), [(80, 25), (50, 100), (95, 10), (0, 100), (100, 10)])
def test_equal_matrices_have_one_colour_on_a_scale_from_zero(zeros, top):
    axes, _ = draw_density(make_report(zeros=lambda n, i: zeros)).axes
    assert axes.images[0].get_clim() == (0, top)


def test_the_numbers_in_the_cells_can_be_read():
    axes, _ = draw_density(make_report(12, zeros=lambda n, i: 8 * n + i)).axes
    assert len(axes.texts) == 72
    for text in axes.texts:
        x, y = text.get_position()
        cell = axes.images[0].to_rgba(axes.images[0].get_array())[y, x]
        assert contrast(text.get_color(), cell[:3]) >= 4.5


def test_numbers_that_do_not_fit_are_left_out():
    assert len(draw_density(make_report(24)).axes[0].texts) == 144
    assert not draw_density(make_report(48)).axes[0].texts


def test_a_number_says_zero_only_for_zero():
    zeros = {0: 100, 1: 99_999, 2: 0}
    weights = [
        WeightReport(f"x.{n}.a", n, "a", (100_000 if n == 1 else 100, 1), count, ())
        for n, count in zeros.items()
    ]
    axes, _ = draw_density(SparsityReport(tuple(weights))).axes
    assert [t.get_text() for t in axes.texts] == ["0", "<0.1", "100.0"]


def test_recovery_shows_zeros_and_leaves_out_what_was_not_measured():
    (axes,) = draw_recovery(make_report(cycles=CYCLES)).axes
    edge, end, change = (
        labelled(axes, label)
        for label in (
            "recovered at the edge",
            "recovered at the cycle's end",
            "mask change (Jaccard distance)",
        )
    )
    assert [y for _, y in edge] == [25]
    assert [y for _, y in end] == [0, pytest.approx(0.001)]
    assert [y for _, y in change] == [6.25, 50]
    assert [round(x) for x, _ in (*edge, *end, *change)] == [2, 2, 3, 2, 3]
    assert [t.get_text() for t in axes.texts] == ["25.0", "0", "<0.01", "6.2", "50.0"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["2", "3"]
    assert "(%)" in axes.get_ylabel()
    assert axes.get_xlabel() == "cycle"


def test_a_share_that_no_cycle_has_is_not_in_the_key():
    cycles = [CycleReport(c, c, 0.5, None, None, 0.0, 0.5) for c in (2, 3)]
    (axes,) = draw_recovery(make_report(cycles=cycles)).axes
    assert "recovered at the edge" not in strings(axes)
    assert [t.get_text() for t in axes.texts] == ["0", "0", "50.0", "50.0"]


@pytest.mark.parametrize("cycles", [(), CYCLES[:1]])
def test_one_cycle_recovers_nothing(cycles):
    assert draw_recovery(make_report(cycles=cycles)) is None


def test_a_comparison_puts_the_best_on_top_with_its_sparsity():
    runs = [
        Run("worse", CYCLICAL, make_report(), metrics={"eval_accuracy": 0.7}),
        Run("dense", log_history=[{"step": 9, "eval_accuracy": 0.9}], total_steps=10),
        Run("never", CYCLICAL, log_history=[{"step": 9, "sparsity": 0.25}], total_steps=10),
    ]
    rows, sparsity, accuracy = draw_comparison(runs).axes
    names = [t.get_text() for t in rows.get_yticklabels()]
    assert names == ["dense", "worse", "never"]
    texts = [t.get_text() for t in rows.texts]
    assert texts[:2] == ["0.0 %", "0.9000"]
    assert texts[2:4] == ["79.5 %", "0.7000"]
    assert texts[4:6] == ["25.0 %", "not evaluated"]
    assert texts[6:] == ["sparsity", "accuracy"]
    assert [
        tuple(*line.get_xydata()) for line in rows.get_lines() if line.get_marker() in "os"
    ] == [
        (0.9, 0),
        (0.7, 1),
    ]
    assert rows.get_xlabel() == "accuracy"
    assert [sparsity.get_ylabel(), accuracy.get_ylabel()] == ["sparsity (%)", "accuracy"]
    assert accuracy.get_xlabel() == "optimizer step"


def test_the_curves_of_a_comparison_look_as_their_rows():
    runs = eight_runs()
    rows, sparsity, accuracy = draw_comparison(runs).axes
    marks = {line.get_ydata()[0]: line for line in rows.get_lines() if line.get_marker() != "None"}
    shown = [line for line in accuracy.get_lines() if line.get_linestyle() != "None"]
    assert len(marks) == len(shown) == 8
    for y, line in enumerate(shown):
        assert line.get_color() == marks[y].get_color()
    curves = {tuple(map(tuple, line.get_xydata())) for line in shown}
    assert curves == {tuple(run.points("eval_accuracy")) for run in runs}
    assert len({line.get_color() for line in shown}) == 8
    assert len({marks[y].get_marker() for y in marks}) == 8
    planned = [line for line in sparsity.get_lines() if line.get_linestyle() != "None"]
    assert any(np.all(line.get_ydata() == 0) for line in planned), "the dense run"
    assert sparsity.get_xlim() == (0, 900)


def test_seeds_share_a_row_with_their_mean_and_its_standard_error():
    values = [0.8, 0.9, 0.85]
    runs = [Run(f"x-seed{i}", metrics={"eval_f1": v}) for i, v in enumerate(values)]
    runs[1:1] = [Run("y-seed0", metrics={"eval_f1": 0.5})]
    rows = draw_comparison(runs).axes[0]
    assert [t.get_text() for t in rows.get_yticklabels()] == ["x (3 seeds)", "y-seed0"]
    error = np.std(values, ddof=1) / np.sqrt(3)
    assert f"0.8500 ± {error:.4f}" in strings(rows)
    assert "standard error" in rows.get_xlabel()
    assert sorted(rows.get_lines()[1].get_xdata()) == sorted(values)
    assert rows.get_lines()[2].get_xdata() == [pytest.approx(0.85)]


def test_the_curve_of_seeds_is_their_mean():
    runs = [
        Run(f"seed{i}-x", log_history=[{"step": t, "loss": float(i + t)} for t in (1, 2, 3 + i)])
        for i in range(2)
    ]
    (_, loss) = draw_comparison(runs).axes
    thin, other, mean, _ = (line.get_xydata().tolist() for line in loss.get_lines())
    assert thin == [[1, 1], [2, 2], [3, 3]]
    assert other == [[1, 2], [2, 3], [4, 5]]
    assert mean == [[1, 1.5], [2, 2.5]]


def test_of_losses_the_lowest_is_the_best():
    runs = [Run(name, metrics={"eval_loss": v}) for name, v in (("a", 0.5), ("b", 0.4))]
    rows = draw_comparison(runs).axes[0]
    assert [t.get_text() for t in rows.get_yticklabels()] == ["b", "a"]
    assert rows.get_xlabel() == "evaluation loss"


def test_a_run_that_stopped_has_a_curve_up_to_there():
    run = Run("a", CYCLICAL, None, log(CYCLICAL, 200)[:4], 200)
    sparsity = draw_comparison([run, make_run("b", CYCLICAL)]).axes[1]
    assert max(sparsity.get_lines()[0].get_xdata()) in (30, 200)
    ends = {max(line.get_xdata()) for line in sparsity.get_lines()}
    assert ends == {30, 200}


def test_a_metric_is_one_that_all_evaluated_runs_have():
    a = Run("a", metrics={"eval_combined_score": 1.0, "eval_accuracy": 1.0, "eval_runtime": 2.0})
    b = Run("b", log_history=[{"step": 1, "eval_accuracy": 0.5, "eval_loss": 1.0}])
    assert choose_metric([a]) == "eval_combined_score"
    assert choose_metric([a, b]) == "eval_accuracy"
    assert choose_metric([a, b, Run("c")]) == "eval_accuracy"
    assert choose_metric([Run("c"), Run("d", metrics={"eval_runtime": 1.0})]) is None
    mnli = Run("e", metrics={"eval_other_accuracy": 0.5, "eval_loss": 1.0})
    assert choose_metric([mnli]) == "eval_other_accuracy"


def test_an_outcome_pairs_a_value_with_the_sparsity_of_its_moment():
    history = [
        {"step": 5, "eval_f1": 0.5, "sparsity": 0.25},
        {"step": 9, "eval_f1": 0.75, "sparsity": 0.5},
    ]
    assert Run("a", log_history=history).outcome("eval_f1") == (0.5, 0.75)
    assert Run("a", log_history=history, weights_step=5).outcome("eval_f1") == (0.25, 0.5)
    saved = Run("a", report=make_report(1), log_history=history, metrics={"eval_f1": 0.625})
    assert saved.outcome("eval_f1") == (0.8, 0.625)
    assert saved.outcome("eval_x") == (0.8, None)
    assert Run("a", CYCLICAL).outcome("eval_f1") == (None, None)


def test_a_record_comes_before_the_trainers_state(tmp_path):
    save_run(tmp_path, make_run(config=CYCLICAL))
    record = RunRecord(8, 4, 16, {"eval_f1": 0.5}, [{"step": 4, "loss": 1.0}])
    record.save(tmp_path)
    run = read_run(tmp_path)
    assert (run.total_steps, run.weights_step) == (16, 4)
    assert run.log_history == record.log_history
    assert run.metrics == record.metrics
    assert run.config == CYCLICAL


def test_a_run_that_was_killed_is_read_from_its_newest_checkpoint(tmp_path):
    run = make_run(config=CYCLICAL, total_steps=80)
    save_run(tmp_path / "checkpoint-9", make_run(total_steps=10))
    save_run(tmp_path / "checkpoint-10", run)
    (tmp_path / "checkpoint-11").mkdir()
    found = read_run(tmp_path)
    assert found.log_history == run.log_history
    assert found.schedule == CYCLICAL.build_schedule(80)
    assert found.name == tmp_path.name
    assert read_run(tmp_path / "checkpoint-10").name == f"{tmp_path.name}/checkpoint-10"


def test_the_results_of_an_evaluation_are_read_where_no_record_has_them(tmp_path):
    save_run(tmp_path, make_run(evaluate=1000))
    (tmp_path / "eval_results.json").write_text('{"eval_accuracy": 0.5, "sparsity": 0.0}')
    assert read_run(tmp_path).outcome("eval_accuracy") == (0.0, 0.5)


@pytest.mark.parametrize("name", ["missing", "."])
def test_a_folder_without_a_run_is_an_error(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"^RUN must be the folder of a run; got .* Pass the outp"):
        plot_runs([tmp_path / name], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_state_that_cannot_be_read_is_an_error(tmp_path, text):
    (tmp_path / "trainer_state.json").write_text(text)
    with pytest.raises(
        ValueError, match=r"trainer_state.json must hold a JSON object; got .*Delete"
    ):
        read_run(tmp_path)


def test_no_run_and_a_run_given_twice_are_errors(tmp_path):
    with pytest.raises(ValueError, match=r"RUN must be given; got none\."):
        plot_runs([], tmp_path)
    with pytest.raises(ValueError, match=r"RUN must be given once; got .* twice\."):
        plot_runs([tmp_path, tmp_path / "x" / ".."], tmp_path)


def test_logs_with_nothing_to_draw_are_an_error(tmp_path):
    save_run(tmp_path / "run", Run("a", log_history=[{"step": 3, "train_runtime": 1.0}]))
    with pytest.raises(ValueError, match="RUN must"):
        plot_runs([tmp_path / "run"], tmp_path / "out")


def test_a_name_with_dollars_is_shown_as_it_is():
    figure = draw_comparison([make_run(r"a_$\foo$"), make_run("b")])
    figure.draw_without_rendering()
    assert r"a_$\foo$" in strings(figure)


def test_of_a_long_name_the_end_is_shown():
    rows = draw_comparison(eight_runs()).axes[0]
    names = [t.get_text() for t in rows.get_yticklabels()]
    assert max(map(len, names)) == 36
    (long,) = [name for name in names if name.startswith("…")]
    assert eight_runs()[1].name.endswith(long[1:])


def test_names_are_told_apart_by_their_parents():
    assert distinct_names(["/x/a/out", "/x/b/out", "/x/c"]) == ["a/out", "b/out", "x/c"]
    assert distinct_names(["/x/a"]) == ["a"]


def test_one_run_gives_the_pictures_that_it_has_something_for(tmp_path):
    run = make_run(config=CYCLICAL)
    full = save_run(
        tmp_path / "full", Run("", CYCLICAL, make_report(cycles=CYCLES), run.log_history)
    )
    dense = save_run(tmp_path / "dense", make_run())
    out = tmp_path / "out" / "new"
    assert save_pictures(full, out) == {
        name: out / f"{name}.png" for name in ("schedule", "density", "recovery")
    }
    assert plot_runs([dense], tmp_path / "other") == [tmp_path / "other" / "schedule.png"]


def test_several_runs_give_their_comparison(tmp_path):
    runs = [save_run(tmp_path / name / "out", make_run(config=CYCLICAL)) for name in "ab"]
    dense = save_run(tmp_path / "dense", make_run())
    (path,) = plot_runs([*runs, str(dense)], tmp_path / "pictures")
    assert path == tmp_path / "pictures" / "comparison.png"
    assert os.listdir(path.parent) == ["comparison.png"]


def test_pictures_are_transparent_and_as_large_as_asked(tmp_path):
    folder = save_run(tmp_path, make_run(config=CYCLICAL))
    for dpi in (200, 100):
        pixels = imread(save_pictures(folder, tmp_path, dpi=dpi)["schedule"])
        assert pixels.shape[1:] == (7 * dpi, 4)
        assert np.all(pixels[[0, 0, -1, -1], [0, -1, 0, -1], 3] == 0)
        assert np.mean(pixels[:, :, 3] == 0) > 0.8


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


def test_without_matplotlib_the_error_says_how_to_get_it(monkeypatch):
    for name in [n for n in sys.modules if n.startswith("hf_cyclprune.pictures.plots")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        ValueError, match=r"got no 'matplotlib'\. Run `pip install \"hf_cyclprune\[pl"
    ):
        import hf_cyclprune.pictures.plots  # noqa: F401


def test_the_style_and_pyplot_are_left_alone(tmp_path, monkeypatch):
    folder = save_run(tmp_path / "run", make_run(config=CYCLICAL))
    other = save_run(tmp_path / "other", make_run())
    names = [name for name in matplotlib.rcParams if name != "backend"]  # reading it chooses one
    before = {name: matplotlib.rcParams[name] for name in names}
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # an import of it fails
    plot_runs([folder], tmp_path / "out")
    plot_runs([folder, other], tmp_path / "out")
    assert {name: matplotlib.rcParams[name] for name in names} == before


def test_what_a_trainer_leaves_can_be_drawn(train, tmp_path):
    args = {"eval_strategy": "steps", "eval_steps": 10}
    trainer = train(
        PruningTrainer, args=args, pruning_config=PruningConfig(sparsity=0.5, num_cycles=2)
    )
    trainer.save_state()
    trainer.save_model()
    folder = tmp_path / "out"
    run = read_run(folder)
    assert run.points("eval_loss") == [
        (e["step"], e["eval_loss"]) for e in trainer.state.log_history if "eval_loss" in e
    ]
    assert run.report == trainer.sparsity_report()
    sparsity, loss, _ = draw_schedule(run).axes
    counted = dict(labelled(sparsity, "counted"))
    assert counted[40] == 100 * run.sparsity == 50
    assert loss.get_ylabel() == "evaluation\nloss"
    assert [p.name for p in plot_runs([folder], tmp_path / "pictures")] == [
        "schedule.png",
        "density.png",
        "recovery.png",
    ]
