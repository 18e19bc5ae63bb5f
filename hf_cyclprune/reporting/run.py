"""A run: its config, its report, and the record that is kept beside the weights it saved."""

from collections.abc import Set
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from hf_cyclprune.config import PruningConfig
from hf_cyclprune.files import read_json, write_json
from hf_cyclprune.pruning.schedules import Schedule
from hf_cyclprune.reporting.metrics import evaluated, is_number
from hf_cyclprune.reporting.report import REMEDY, SparsityReport

RECORD_NAME = "pruning_run.json"


@dataclass(frozen=True)
class RunRecord:
    """A run at the moment when its weights were saved; None and empty fields are unknown."""

    step: int | None = None
    """Optimizer steps done when the record was written."""
    weights_step: int | None = None
    """The optimizer step that the saved weights are from: `step`, or that of the best model."""
    total_steps: int | None = None
    """Optimizer steps of the whole run, whether it got there or not."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Results of evaluating the saved weights, such as `eval_accuracy`."""
    log_history: list[dict[str, Any]] = field(default_factory=list)
    """The log entries in the Trainer's state: each has `step`, and `sparsity` and `cycle` while
    pruning; those of training have `loss` and `learning_rate`, those of evaluations `eval_*`."""
    base_model: str | None = None
    """The id on the Hub of the model that was fine-tuned, if it came from there."""
    card: dict[str, Any] = field(default_factory=dict)
    """The arguments of create_model_card: language, license, tags, tasks and so on."""
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of hf_cyclprune, transformers, torch and so on."""
    dense_metrics: dict[str, float] = field(default_factory=dict)
    """Results of a dense run of the same task that this one is compared with."""
    restarts_lr: bool | None = None
    """Whether the learning rate restarted with every cycle."""
    is_plan_kept: bool = True
    """False if the run was resumed with another schedule."""
    reach: float | None = None
    """How far a weight that returns from zero could travel in the last cycle, in units of the
    smallest kept weight (the median over the targets)."""
    fingerprint: int | None = None
    """Checksum of the saved weights that the record is about."""
    command: str | None = None
    """The command line, without secrets; None in a notebook or at a prompt."""

    @property
    def is_finished(self) -> bool:
        """False if the record was written before the last step of the run."""
        return self.step is None or self.total_steps is None or self.step >= self.total_steps

    def save(self, folder: str | Path) -> Path:
        """Write pruning_run.json into `folder`; return its path."""
        return write_json(Path(folder) / RECORD_NAME, asdict(self), indent=1)


def load_record(folder: str | Path) -> RunRecord | None:
    """Return the record that was saved in `folder`; None if there is none.

    Raises:
        ValueError: it cannot be read.
    """
    path = Path(folder) / RECORD_NAME
    if not path.is_file():
        return None
    values = read_json(path, REMEDY)
    missing = {"step", "weights_step", "total_steps"} - values.keys()
    if missing:
        raise ValueError(
            f"{RECORD_NAME} in '{folder}' is not one that hf_cyclprune wrote: '{min(missing)}' is "
            f"missing. {REMEDY}"
        )
    known = {f.name for f in fields(RunRecord)}
    return RunRecord(**{name: value for name, value in values.items() if name in known})


@dataclass(frozen=True)
class Run:
    """One run; what is None or empty is unknown."""

    name: str
    config: PruningConfig | None = None
    """None for a dense run."""
    report: SparsityReport | None = None
    record: RunRecord = field(default_factory=RunRecord)

    @cached_property
    def schedule(self) -> Schedule | None:
        """The planned sparsity; None if there was no plan (dense, held zeros), or it changed."""
        config = self.config
        total_steps = self.record.total_steps if self.record.is_plan_kept else None
        if config is None or config.target_sparsity is None or not total_steps:
            return None
        return config.build_schedule(total_steps)

    @property
    def is_dense(self) -> bool:
        """Whether nothing says that the run pruned."""
        return self.config is None and self.report is None and not self.points("sparsity")

    @property
    def sparsity(self) -> float | None:
        """The sparsity of the saved weights, or else the last that was logged; 0 if dense."""
        if self.report is not None:
            return self.report.sparsity
        logged = [value for _, value in self.points("sparsity")]
        known = [self.record.metrics.get("sparsity"), *logged[::-1], 0.0 if self.is_dense else None]
        return next((value for value in known if value is not None), None)

    def points(self, name: str) -> list[tuple[int, float]]:
        """Return (optimizer step, value) of all log entries with a finite value, once per step."""
        values = {entry["step"]: entry[name] for entry in self._entries(name)}
        return sorted(values.items())

    def outcome(self, metric: str) -> tuple[float | None, float | None]:
        """Return (sparsity, value) of the evaluation of the saved weights, or else of the last."""
        if metric in self.record.metrics:
            return self.sparsity, self.record.metrics[metric]
        entries = self._entries(metric)
        if not entries:
            return self.sparsity, None
        of_weights = [entry for entry in entries if entry["step"] == self.record.weights_step]
        entry = (of_weights or entries)[-1]
        return entry.get("sparsity", self.sparsity), entry[metric]

    def _entries(self, name: str) -> list[dict[str, Any]]:
        return [e for e in self.record.log_history if "step" in e and is_number(e.get(name))]

    @property
    def logged_metrics(self) -> Set[str]:
        """The names of all results of evaluations in the log."""
        return {name for entry in self.record.log_history for name in evaluated(entry)}

    @property
    def metric_names(self) -> Set[str]:
        """The names of all results of evaluations, logged or of the saved weights."""
        return self.logged_metrics | evaluated(self.record.metrics).keys()
