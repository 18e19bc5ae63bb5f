"""The metrics of GLUE, also as an `evaluate.Metric` that works without a network.

The keys are those of evaluate's own "glue" metric. A correlation with constant predictions, which
is not defined, is 0.0: a NaN would break the choice of the best model and readers of JSON.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import datasets
import evaluate
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef

from hf_cyclprune.glue.tasks import TASKS, GlueTask


def score(task: GlueTask, predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
    """Compute a task's metrics and, if there are several, their mean as "combined_score".

    Args:
        predictions: label ids, or numbers in a regression.  # (N,)
        references: the true label ids or numbers.  # (N,)

    >>> score(TASKS["mrpc"], [1, 1, 0, 1], [1, 0, 0, 1])
    {'accuracy': 0.75, 'f1': 0.8, 'combined_score': 0.775}
    """
    p, r = np.asarray(predictions).reshape(-1), np.asarray(references).reshape(-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant input
        exact = {name: float(_METRICS[name](p, r)) for name in task.metrics}
    values = {name: value if math.isfinite(value) else 0.0 for name, value in exact.items()}
    if len(values) > 1:
        values["combined_score"] = float(np.mean(list(values.values())))
    return values


class GlueMetric(evaluate.Metric):  # type: ignore[misc]
    """The metrics of one task, for code that uses `evaluate`; needs no network."""

    def __init__(self, task_name: str, **kwargs: Any) -> None:
        super().__init__(config_name=task_name, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        is_regression = TASKS[self.config_name].is_regression
        value = datasets.Value("float32" if is_regression else "int64")
        return evaluate.MetricInfo(
            description="The metrics of one GLUE task.",
            citation="Wang et al. 2019, https://arxiv.org/abs/1804.07461",
            features=datasets.Features({"predictions": value, "references": value}),
            format="numpy",
        )

    def _compute(self, predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
        return score(TASKS[self.config_name], predictions, references)


_METRICS: dict[str, Callable[[NDArray[Any], NDArray[Any]], float]] = {
    "accuracy": lambda p, r: (p == r).mean(),
    "f1": lambda p, r: f1_score(r, p, zero_division=0),
    "matthews_correlation": lambda p, r: matthews_corrcoef(r, p),
    "pearson": lambda p, r: pearsonr(p, r)[0],
    "spearmanr": lambda p, r: spearmanr(p, r)[0],
}
