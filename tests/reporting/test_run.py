import math

import pytest

from hf_cyclprune.reporting.metrics import choose_metric
from hf_cyclprune.reporting.run import RECORD_NAME, RunRecord, load_record
from tests.reporting.runs import CYCLICAL, make_report, run_of

RECORD = RunRecord(
    step=30,
    weights_step=20,
    total_steps=40,
    metrics={"eval_accuracy": 0.75},
    log_history=[{"step": 10, "loss": 0.5, "sparsity": 0.4, "cycle": 1}],
    base_model="org/base",
    card={"language": "en"},
    versions={"torch": "2"},
)


def test_a_record_comes_back_as_it_was_saved(tmp_path):
    assert RECORD.save(tmp_path / "new") == tmp_path / "new" / RECORD_NAME
    assert load_record(tmp_path / "new") == RECORD
    assert not RECORD.is_finished


def test_a_record_of_which_nothing_is_known_comes_back_too(tmp_path):
    RunRecord().save(tmp_path)
    assert load_record(tmp_path) == RunRecord()
    assert RunRecord().step is RunRecord().weights_step is RunRecord().total_steps is None
    assert RunRecord().is_finished, "not known to have stopped early"


def test_a_folder_without_a_record_has_none(tmp_path):
    assert load_record(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"step": 1}'])
def test_a_record_that_cannot_be_read_is_an_error(tmp_path, text):
    (tmp_path / RECORD_NAME).write_text(text)
    with pytest.raises(ValueError, match=rf"^{RECORD_NAME} in '.*' .*: .*\. Delete the file"):
        load_record(tmp_path)


def test_nan_and_repeated_logs_are_left_out():
    history = [
        {"step": 5, "loss": math.nan, "learning_rate": 1.0},
        {"step": 5, "learning_rate": 2.0},
        {"step": 6, "loss": 0.5},
        {"loss": 0.25},
    ]
    run = run_of("a", log_history=history)
    assert run.points("loss") == [(6, 0.5)]
    assert run.points("learning_rate") == [(5, 2.0)]


def test_an_outcome_pairs_a_value_with_the_sparsity_of_its_moment():
    history = [
        {"step": 5, "eval_f1": 0.5, "sparsity": 0.25},
        {"step": 9, "eval_f1": 0.75, "sparsity": 0.5},
    ]
    assert run_of("a", log_history=history).outcome("eval_f1") == (0.5, 0.75)
    assert run_of("a", log_history=history, weights_step=5).outcome("eval_f1") == (0.25, 0.5)
    saved = run_of("a", report=make_report(1), log_history=history, metrics={"eval_f1": 0.625})
    assert saved.outcome("eval_f1") == (0.8, 0.625)
    assert saved.outcome("eval_x") == (0.8, None)
    assert run_of("a", CYCLICAL).outcome("eval_f1") == (None, None)


def test_a_metric_is_one_that_all_evaluated_runs_have():
    def choose(*runs):
        return choose_metric(run.metric_names for run in runs)

    a = run_of("a", metrics={"eval_combined_score": 1.0, "eval_accuracy": 1.0, "eval_runtime": 2.0})
    b = run_of("b", log_history=[{"step": 1, "eval_accuracy": 0.5, "eval_loss": 1.0}])
    assert choose(a) == "eval_combined_score"
    assert choose(a, b) == "eval_accuracy"
    assert choose(a, b, run_of("c")) == "eval_accuracy"
    assert choose(run_of("c"), run_of("d", metrics={"eval_runtime": 1.0})) is None
    mnli = run_of("e", metrics={"eval_other_accuracy": 0.5, "eval_loss": 1.0})
    assert choose(mnli) == "eval_other_accuracy"
