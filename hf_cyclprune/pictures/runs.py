"""Folders of runs -> what their pictures need: plain JSON files, no model and nothing unpickled."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hf_cyclprune.config import CONFIG_NAME, PruningConfig, load_config
from hf_cyclprune.pruning.schedules import Schedule
from hf_cyclprune.reporting.report import REPORT_NAME, SparsityReport, load_report
from hf_cyclprune.reporting.run import RECORD_NAME, load_record

STATE_NAME = "trainer_state.json"
RESULTS_NAME = "eval_results.json"  # written by Trainer.save_metrics("eval", ..)

METRICS = (
    "combined_score",
    "accuracy",
    "matthews_correlation",
    "pearson",
    "spearmanr",
    "f1",
    "exact_match",
    "loss",
)
"""What an evaluation is judged by, the first that is there; GLUE's mean of two metrics first."""


@dataclass(frozen=True)
class Run:
    """Facts of one run, as far as its folder has them."""

    name: str
    config: PruningConfig | None = None
    """None for a dense run."""
    report: SparsityReport | None = None
    log_history: Sequence[dict[str, Any]] = ()
    """As in the Trainer's state."""
    total_steps: int = 0
    """Optimizer steps of the whole run, whether it got there or not; 0 if unknown."""
    weights_step: int | None = None
    """The optimizer step after which the saved weights stood; None if unknown."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the saved weights: `eval_accuracy`, ..; {} if unknown."""

    is_plan_kept: bool = True
    """False if the run was resumed with another schedule."""

    @cached_property
    def schedule(self) -> Schedule | None:
        """The planned sparsity; None where nothing was (dense, 'hold') or the plan has changed."""
        is_planned = self.config is not None and self.config.method != "hold" and self.is_plan_kept
        if self.config is None or not is_planned or self.total_steps < 1:
            return None
        return self.config.build_schedule(self.total_steps)

    @property
    def is_dense(self) -> bool:
        """Whether nothing says that the run pruned."""
        return self.config is None and self.report is None and not self.points("sparsity")

    @property
    def sparsity(self) -> float | None:
        """Of the saved weights, or else what was counted last; 0 if dense; None if unknown."""
        if self.report is not None:
            return self.report.sparsity
        logged = [value for _, value in self.points("sparsity")]
        known = [self.metrics.get("sparsity"), *logged[::-1], 0.0 if self.is_dense else None]
        return next((value for value in known if value is not None), None)

    def points(self, name: str) -> list[tuple[int, float]]:
        """(optimizer step, value) of all log entries with a finite value; of one step the last."""
        values = {entry["step"]: entry[name] for entry in self.log_history if _has(entry, name)}
        return sorted(values.items())

    def outcome(self, metric: str) -> tuple[float | None, float | None]:
        """(sparsity, value) of one evaluation: of the saved weights, or else of the last one."""
        if metric in self.metrics:
            return self.sparsity, self.metrics[metric]
        entries = [entry for entry in self.log_history if _has(entry, metric)]
        if not entries:
            return self.sparsity, None
        of_weights = [entry for entry in entries if entry["step"] == self.weights_step]
        entry = (of_weights or entries)[-1]
        return entry.get("sparsity", self.sparsity), entry[metric]

    def metric_names(self) -> set[str]:
        """All values of evaluations that the run has, logged or final."""
        names = {name for entry in self.log_history for name in entry} | set(self.metrics)
        return {name for name in names if name.startswith("eval_")}


def read_run(folder: str | Path) -> Run:
    """The run in an output_dir, or in one of its checkpoints.

    What pruning_run.json says comes first; without one, the Trainer's state in the folder or in its
    newest checkpoint.

    Raises:
        ValueError: there is nothing to draw, or a file that cannot be read.
    """
    folder = Path(folder)
    record = load_record(folder)
    places = [folder, *_checkpoints(folder)] if record is None else [folder]
    state = _read_object(_first(places, STATE_NAME)) if record is None else {}
    history = record.log_history if record is not None else state.get("log_history", [])
    report = next(filter(None, map(load_report, places)), None)
    if not history and report is None:
        raise ValueError(
            f"RUN must be the folder of a run; got '{folder}' without logs in {RECORD_NAME} or "
            f"{STATE_NAME}, and without {REPORT_NAME}. Pass the output_dir of a run, or one of its "
            "checkpoints."
        )
    config = _first(places, CONFIG_NAME)
    return Run(
        name=distinct_names([folder])[0],
        config=load_config(config.parent) if config is not None else None,
        report=report,
        log_history=history,
        total_steps=record.total_steps if record is not None else state.get("max_steps", 0),
        weights_step=record.weights_step if record is not None else None,
        is_plan_kept=record.is_plan_kept if record is not None else True,
        metrics=(record.metrics if record is not None else {})
        or _read_object(_first([folder], RESULTS_NAME)),
    )


def choose_metric(runs: Iterable[Run]) -> str | None:
    """The evaluation's value to judge by, which all runs have that were evaluated; None without.

    >>> choose_metric([Run("a", metrics={"eval_f1": 0.5, "eval_accuracy": 0.5, "eval_loss": 1.0})])
    'eval_accuracy'
    """
    found = [names for names in (run.metric_names() for run in runs) if names]
    common = sorted(set.intersection(*found), key=len) if found else []
    for metric in METRICS:
        for name in common:  # the shortest first: eval_accuracy before eval_matched_accuracy
            if name.endswith(f"_{metric}"):
                return name
    return None


def distinct_names(folders: Sequence[str | Path]) -> list[str]:
    """The last parts of the folders' paths, as many as tell them apart.

    >>> distinct_names(["/runs/a/out", "/runs/b/out"])
    ['a/out', 'b/out']
    >>> distinct_names(["/runs/a/checkpoint-500"])
    ['a/checkpoint-500']

    Raises:
        ValueError: a folder is given twice.
    """
    paths = [Path(folder).resolve() for folder in folders]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise ValueError(f"RUN must be given once; got '{twice}' twice. Drop one of the two.")
    shown = 2 if any(re.fullmatch(r"checkpoint-\d+", path.name) for path in paths) else 1
    while True:
        names = ["/".join(path.parts[-shown:]) for path in paths]
        if len(set(names)) == len(names):
            return names
        shown += 1


def _has(entry: dict[str, Any], name: str) -> bool:
    value = entry.get(name)
    return "step" in entry and isinstance(value, int | float) and math.isfinite(value)


def _checkpoints(folder: Path) -> list[Path]:
    """The newest first."""
    numbered = [(path.name.rpartition("-")[2], path) for path in folder.glob("checkpoint-*")]
    whole = [(int(number), path) for number, path in numbered if number.isdecimal()]
    return [path for _, path in sorted(whole, reverse=True)]


def _first(places: Iterable[Path], name: str) -> Path | None:
    return next((place / name for place in places if (place / name).is_file()), None)


def _read_object(path: Path | None) -> dict[str, Any]:
    """A JSON object of transformers; {} without a file."""
    if path is None:
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        values = error
    if not isinstance(values, dict):
        raise ValueError(
            f"{path.name} must hold a JSON object; got {values!r} in {path.parent}. Delete it to "
            "do without."
        )
    return values
