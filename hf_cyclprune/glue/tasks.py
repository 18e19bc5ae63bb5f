"""The nine tasks of GLUE (Wang et al. 2019, https://arxiv.org/abs/1804.07461)."""

import difflib
from dataclasses import dataclass


@dataclass(frozen=True)
class GlueTask:
    """One task: its columns, its labels in the order of their ids, and how it is scored."""

    name: str
    columns: tuple[str, ...]
    """One text column, or a pair."""
    labels: tuple[str, ...]
    """Label names; a single one, "score", is a regression."""
    metrics: tuple[str, ...] = ("accuracy",)
    """What GLUE reports; their mean is the task's score."""
    validation_splits: tuple[str, ...] = ("validation",)
    test_splits: tuple[str, ...] = ("test",)

    @property
    def is_regression(self) -> bool:
        return self.labels == ("score",)

    def splits(self, kind: str) -> tuple[str, ...]:
        """Names of the splits that are for "train", "validation" or "test"."""
        return {"validation": self.validation_splits, "test": self.test_splits}.get(kind, (kind,))

    @property
    def best_metric(self) -> str:
        """The metric that chooses the best model."""
        return self.metrics[0] if len(self.metrics) == 1 else "combined_score"


_PAIR = ("sentence1", "sentence2")

TASKS: dict[str, GlueTask] = {
    task.name: task
    for task in (
        GlueTask("cola", ("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation",)),
        GlueTask("sst2", ("sentence",), ("negative", "positive")),
        GlueTask("mrpc", _PAIR, ("not_equivalent", "equivalent"), ("accuracy", "f1")),
        GlueTask("stsb", _PAIR, ("score",), ("pearson", "spearmanr")),
        GlueTask(
            "qqp",
            ("question1", "question2"),
            ("not_duplicate", "duplicate"),
            ("accuracy", "f1"),
        ),
        GlueTask(
            "mnli",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            validation_splits=("validation_matched", "validation_mismatched"),
            test_splits=("test_matched", "test_mismatched"),
        ),
        GlueTask("qnli", ("question", "sentence"), ("entailment", "not_entailment")),
        GlueTask("rte", _PAIR, ("entailment", "not_entailment")),
        GlueTask("wnli", _PAIR, ("not_entailment", "entailment")),
    )
}


def get_task(name: str) -> GlueTask:
    """The task of this name.

    Raises:
        ValueError: no such task; lists them and the nearest.
    """
    task = TASKS.get(name.lower())
    if task is None:
        near = difflib.get_close_matches(name.lower(), TASKS, n=1)
        hint = f"Did you mean '{near[0]}'?" if near else "Choose one of them."
        raise ValueError(f"task_name must be one of {', '.join(TASKS)}; got '{name}'. {hint}")
    return task
