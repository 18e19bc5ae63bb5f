import numpy as np
import pytest

from hf_cyclprune.pictures.comparison import draw_comparison
from tests.pictures.figures import eight_runs, strings
from tests.reporting.runs import CYCLICAL, log, make_report, make_run, run_of


def test_a_comparison_puts_the_best_on_top_with_its_sparsity():
    runs = [
        run_of("worse", CYCLICAL, make_report(), metrics={"eval_accuracy": 0.7}),
        run_of("dense", log_history=[{"step": 9, "eval_accuracy": 0.9}], total_steps=10),
        run_of("never", CYCLICAL, log_history=[{"step": 9, "sparsity": 0.25}], total_steps=10),
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
    runs = [run_of(f"x-seed{i}", metrics={"eval_f1": v}) for i, v in enumerate(values)]
    runs[1:1] = [run_of("y-seed0", metrics={"eval_f1": 0.5})]
    rows = draw_comparison(runs).axes[0]
    assert [t.get_text() for t in rows.get_yticklabels()] == ["x (3 seeds)", "y-seed0"]
    error = np.std(values, ddof=1) / np.sqrt(3)
    assert f"0.8500 ± {error:.4f}" in strings(rows)
    assert "standard error" in rows.get_xlabel()
    assert sorted(rows.get_lines()[1].get_xdata()) == sorted(values)
    assert rows.get_lines()[2].get_xdata() == [pytest.approx(0.85)]


def test_the_curve_of_seeds_is_their_mean():
    runs = [
        run_of(f"seed{i}-x", log_history=[{"step": t, "loss": float(i + t)} for t in (1, 2, 3 + i)])
        for i in range(2)
    ]
    (_, loss) = draw_comparison(runs).axes
    thin, other, mean, _ = (line.get_xydata().tolist() for line in loss.get_lines())
    assert thin == [[1, 1], [2, 2], [3, 3]]
    assert other == [[1, 2], [2, 3], [4, 5]]
    assert mean == [[1, 1.5], [2, 2.5]]


def test_of_losses_the_lowest_is_the_best():
    runs = [run_of(name, metrics={"eval_loss": v}) for name, v in (("a", 0.5), ("b", 0.4))]
    rows = draw_comparison(runs).axes[0]
    assert [t.get_text() for t in rows.get_yticklabels()] == ["b", "a"]
    assert rows.get_xlabel() == "evaluation loss"


def test_a_run_that_stopped_has_a_curve_up_to_there():
    run = run_of("a", CYCLICAL, log_history=log(CYCLICAL, 200)[:4], total_steps=200)
    sparsity = draw_comparison([run, make_run("b", CYCLICAL)]).axes[1]
    assert max(sparsity.get_lines()[0].get_xdata()) in (30, 200)
    ends = {max(line.get_xdata()) for line in sparsity.get_lines()}
    assert ends == {30, 200}


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
