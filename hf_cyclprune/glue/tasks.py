"""The nine tasks of GLUE (Wang et al. 2019, https://arxiv.org/abs/1804.07461)."""

from typing import NamedTuple

from hf_cyclprune.checks import check_known


class GlueTask(NamedTuple):
    """A task: its columns, its labels in the order of their ids, and its metrics."""

    name: str
    columns: tuple[str, ...]
    """The text column, or a pair of them."""
    labels: tuple[str, ...]
    """Names of the labels; a regression has a single one, "score"."""
    metrics: tuple[str, ...] = ("accuracy",)
    """The metrics that GLUE reports; their mean is the task's score."""
    validation_splits: tuple[str, ...] = ("validation",)
    test_splits: tuple[str, ...] = ("test",)

    @property
    def is_regression(self) -> bool:
        """Whether the label is a number."""
        return self.labels == ("score",)

    def splits(self, kind: str) -> tuple[str, ...]:
        """Return the names of the splits for "train", "validation" or "test"."""
        return {"validation": self.validation_splits, "test": self.test_splits}.get(kind, (kind,))

    @property
    def best_metric(self) -> str:
        """Name of the metric that decides which model is the best."""
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
            "qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")
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
    """Return a task by its name, in upper or lower case.

    Raises:
        ValueError: there is no such task.
    """
    check_known("task_name", name.lower(), TASKS)
    return TASKS[name.lower()]
