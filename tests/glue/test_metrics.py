import math

import numpy as np
import pytest

pytest.importorskip("evaluate", reason="the extra glue is not installed")

from hf_cyclprune.glue.metrics import GlueMetric, score
from hf_cyclprune.glue.tasks import TASKS, get_task

KEYS = {
    "cola": {"matthews_correlation"},
    "mrpc": {"accuracy", "f1", "combined_score"},
    "qqp": {"accuracy", "f1", "combined_score"},
    "stsb": {"pearson", "spearmanr", "combined_score"},
}


@pytest.mark.parametrize("name", TASKS)
def test_perfect_predictions_score_one(name):
    task = TASKS[name]
    truth = [0.5, 1.0, 3.5, 5.0] if task.is_regression else [0, 1, 1, 0]
    values = score(task, truth, truth)
    assert set(values) == KEYS.get(name, {"accuracy"})
    assert values == pytest.approx(dict.fromkeys(values, 1.0))
    assert task.best_metric in values


def test_values_by_hand():
    assert score(TASKS["sst2"], [1, 0, 1, 1], [1, 1, 1, 0]) == {"accuracy": 0.5}
    # true positives 2, false positives 1, false negatives 1, true negatives 0
    assert score(TASKS["mrpc"], [1, 1, 1, 0], [1, 1, 0, 1])["f1"] == pytest.approx(2 / 3)
    # (TP TN - FP FN) / sqrt of the product of the margins = (2 - 0) / sqrt(2 * 3 * 1 * 2)
    cola = score(TASKS["cola"], [1, 1, 0, 0], [1, 1, 1, 0])
    assert cola["matthews_correlation"] == pytest.approx(2 / math.sqrt(12))
    ranks = score(TASKS["stsb"], [1.0, 2.0, 4.0], [1.0, 3.0, 2.0])
    assert ranks["spearmanr"] == pytest.approx(0.5)
    assert ranks["combined_score"] == pytest.approx((ranks["pearson"] + 0.5) / 2)


@pytest.mark.parametrize("name", TASKS)
def test_constant_predictions_give_a_number(name):
    values = score(TASKS[name], np.zeros(4), [0, 1, 1, 0])
    assert all(math.isfinite(value) for value in values.values())


@pytest.mark.parametrize("name", TASKS)
def test_the_evaluate_metric_gives_the_same_and_needs_no_network(name, tmp_path):
    predictions, references = [1, 0, 1, 1], [1, 1, 0, 1]
    metric = GlueMetric(name, cache_dir=str(tmp_path))
    values = metric.compute(predictions=predictions, references=references)
    assert values == pytest.approx(score(TASKS[name], predictions, references))


def test_the_metric_can_be_filled_batch_by_batch(tmp_path):
    metric = GlueMetric("sst2", cache_dir=str(tmp_path))
    metric.add_batch(predictions=[1, 0], references=[1, 1])
    metric.add_batch(predictions=[0, 0], references=[0, 0])
    assert metric.compute() == {"accuracy": 0.75}


def test_an_unknown_task_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"task_name must be one of .*got 'ssst2'.*'sst2'"):
        get_task("ssst2")
