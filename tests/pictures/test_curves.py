from hf_cyclprune.config import PruningConfig
from hf_cyclprune.pictures.curves import draw_schedule
from tests.pictures.figures import labelled, strings
from tests.reporting.runs import CYCLICAL, log, make_run, run_of


def test_a_schedule_shows_the_plan_and_what_was_counted():
    run = make_run(config=CYCLICAL)
    sparsity, accuracy, rate = draw_schedule(run).axes
    plan = CYCLICAL.build_schedule(200)
    assert labelled(sparsity, "planned") == [(t, 100 * plan.sparsity_at(t)) for t in range(1, 201)]
    logged = {e["step"]: 100 * e["sparsity"] for e in run.record.log_history if "sparsity" in e}
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
    history = run.record.log_history
    logged = [(e["step"], e["eval_accuracy"]) for e in history if "eval_accuracy" in e]
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
    run = run_of("a", CYCLICAL, log_history=counted + logged, total_steps=200)
    axes = draw_schedule(run).axes[1]
    assert labelled(axes, "evaluated at the target sparsity") == [(t, 0.9)]
    assert labelled(axes, "below it") == [(t - 1, 0.8)]


def test_a_plan_that_was_changed_is_not_drawn():
    run = run_of("a", CYCLICAL, log_history=log(CYCLICAL, 200), total_steps=200, is_plan_kept=False)
    assert run.schedule is None
    axes = draw_schedule(run).axes[0]
    assert "planned" not in [line.get_label() for line in axes.get_lines()]
    assert "counted" in [line.get_label() for line in axes.get_lines()]


def test_the_learning_rate_is_joined_inside_of_cycles_only():
    run = make_run(config=CYCLICAL)
    rate = draw_schedule(run).axes[-1]
    lines = [line.get_xydata().tolist() for line in rate.get_lines() if len(line.get_xdata()) > 2]
    history = run.record.log_history
    logged = [[e["step"], e["learning_rate"]] for e in history if "learning_rate" in e]
    assert lines == [logged[c : c + 5] for c in (0, 5, 10, 15)]


def test_the_evaluation_of_the_saved_weights_is_marked():
    figure = draw_schedule(
        run_of("a", CYCLICAL, log_history=log(CYCLICAL, 200), total_steps=200, weights_step=100)
    )
    assert labelled(figure.axes[1], "saved, 0.8100") == [(100, 0.81)]


def test_a_long_plan_is_thinned_but_its_edges_are_kept():
    config = PruningConfig("cyclical", sparsity=0.9, num_cycles=3)
    run = run_of("a", config, total_steps=1_000_000)
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
    expected = [(e["step"], e["loss"]) for e in run.record.log_history if "loss" in e]
    assert [tuple(p) for p in axes.get_lines()[0].get_xydata()] == expected


def test_a_dense_run_has_no_panel_of_sparsity():
    assert [axes.get_ylabel() for axes in draw_schedule(make_run()).axes] == [
        "accuracy",
        "learning\nrate",
    ]


def test_a_run_that_holds_zeros_has_no_plan():
    run = run_of(
        "a",
        PruningConfig(method="hold"),
        log_history=[{"step": 5, "sparsity": 0.5}],
        total_steps=10,
    )
    (axes,) = draw_schedule(run).axes
    assert [line.get_label() for line in axes.get_lines()] == ["counted"]


def test_nothing_logged_and_nothing_planned_is_no_picture():
    assert draw_schedule(run_of("a", log_history=[{"step": 3, "train_runtime": 1.0}])) is None
