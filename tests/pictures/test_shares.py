from dataclasses import replace

import numpy as np
import pytest

from hf_cyclprune.pictures.shares import draw_density, draw_recovery
from hf_cyclprune.reporting.cycles import CycleReport
from hf_cyclprune.reporting.report import SparsityReport
from hf_cyclprune.reporting.weights import WeightReport
from tests.pictures.figures import contrast, labelled, strings
from tests.reporting.runs import CYCLES, make_report


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


def test_exchanges_at_the_edges_have_a_part_of_their_own():
    exchanged = [replace(c, benefit=3e-7 * c.cycle, cost=1e-7) for c in CYCLES[1:]]
    axes, below = draw_recovery(make_report(cycles=[CYCLES[0], *exchanged])).axes
    gains = labelled(below, "benefit of a returned weight")
    losses = labelled(below, "cost of the one it displaced")
    assert [y for _, y in gains] == [3e-7 * c.cycle for c in CYCLES[1:]]
    assert [y for _, y in losses] == [1e-7] * len(exchanged)
    assert [round(x) for x, _ in gains] == [c.cycle for c in CYCLES[1:]]
    assert (axes.get_xlabel(), below.get_xlabel()) == ("", "cycle")


def test_a_cycle_that_a_run_had_twice_has_two_places():
    cycles = [CycleReport(n, t, 0.8, t - 9, 0.4, 0.1, 0.2) for n, t in ((2, 20), (2, 40), (3, 60))]
    (axes,) = draw_recovery(make_report(cycles=cycles)).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["2", "2", "3"]
    (line,) = [line for line in axes.get_lines() if "edge" in line.get_label()]
    assert len(set(line.get_xdata())) == 3


def test_a_share_that_no_cycle_has_is_not_in_the_key():
    cycles = [CycleReport(c, c, 0.5, None, None, 0.0, 0.5) for c in (2, 3)]
    (axes,) = draw_recovery(make_report(cycles=cycles)).axes
    assert "recovered at the edge" not in strings(axes)
    assert [t.get_text() for t in axes.texts] == ["0", "0", "50.0", "50.0"]


@pytest.mark.parametrize("cycles", [(), CYCLES[:1]])
def test_one_cycle_recovers_nothing(cycles):
    assert draw_recovery(make_report(cycles=cycles)) is None
