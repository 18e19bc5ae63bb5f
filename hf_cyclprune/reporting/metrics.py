"""The one rule for metrics: which entries of a dictionary measure the model's answers."""

import math
import re
from collections.abc import Iterable, Mapping, Set
from numbers import Real
from typing import Any

PREFIX = "eval_"
"""The Trainer puts it before every name in the results of an evaluation."""

METRICS = (
    *("combined_score", "accuracy", "matthews_correlation", "pearson", "spearmanr"),
    *("f1", "exact_match", "loss"),
)
"""Ends of the names of the metrics that runs are compared by, the preferred one first."""

_NOT_MEASURED = re.compile(
    r"_(runtime|per_second|time|samples|epoch|step|cycle|sparsity|flos)(_mm)?$"
)  # mm: the mismatched validation set of MNLI


def evaluated(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results of evaluations, `eval_*`, with their times and counts.

    >>> evaluated({"eval_f1": 0.5, "eval_runtime": 9.0, "epoch": 1.0})
    {'eval_f1': 0.5, 'eval_runtime': 9.0}
    """
    return {name: value for name, value in values.items() if name.startswith(PREFIX)}


def measured(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics: the finite numbers among the results that are no time, count or speed.

    >>> measured({"eval_f1": 0.5, "eval_runtime": 9.0, "eval_loss": float("nan"), "epoch": 1.0})
    {'eval_f1': 0.5}
    """
    return {
        name: float(value)
        for name, value in evaluated(values).items()
        if not _NOT_MEASURED.search(name) and is_number(value)
    }


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number; a flag is none."""
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)


def choose_metric(names_of_runs: Iterable[Set[str]]) -> str | None:
    """Choose the metric to compare runs by, from the names of the results of each.

    It is one that all runs with an evaluation have; None if there is none.

    >>> choose_metric([{"eval_f1", "eval_accuracy", "eval_loss"}, {"eval_accuracy"}, set()])
    'eval_accuracy'
    """
    found = [names for names in names_of_runs if names]
    common = sorted(set.intersection(*map(set, found)), key=len) if found else []
    for metric in METRICS:
        for name in common:  # the shortest first: eval_accuracy before eval_matched_accuracy
            if name.endswith(f"_{metric}"):
                return name
    return None
