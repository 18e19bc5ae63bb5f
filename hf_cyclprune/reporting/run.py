"""What a run was: the facts of its card and its pictures, kept beside the weights it saved."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

RECORD_NAME = "pruning_run.json"


@dataclass(frozen=True)
class RunRecord:
    """Facts of a run at the moment when its weights were saved."""

    step: int
    """Optimizer steps done when the record was written."""
    weights_step: int
    """The optimizer step after which the saved weights stood: `step`, or that of the best model."""
    total_steps: int
    """Optimizer steps of the whole run, whether it got there or not."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the saved weights, if they were evaluated: `eval_accuracy`, .."""
    log_history: list[dict[str, Any]] = field(default_factory=list)
    """As in the Trainer's state: each entry has `step`, and `sparsity` and `cycle` while pruning;
    training logs have `loss` and `learning_rate`, evaluations `eval_*`."""
    base_model: str | None = None
    """The id on the Hub of the model that was fine-tuned, if it came from there."""
    card: dict[str, Any] = field(default_factory=dict)
    """What the caller of create_model_card said: language, license, tags, tasks, .."""
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    """Of the training; name -> value."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of hf_cyclprune, transformers, torch, .."""
    dense_metrics: dict[str, float] = field(default_factory=dict)
    """Of a dense run of the same task that this one is compared with."""
    is_plan_kept: bool = True
    """False if the run was resumed with another schedule."""
    fingerprint: int | None = None
    """Checksum of the saved weights that all of this is about."""
    command: str | None = None
    """The command line, without secrets; None outside of one."""

    @property
    def is_finished(self) -> bool:
        return self.step >= self.total_steps

    def save(self, folder: str | Path) -> Path:
        """Write pruning_run.json into `folder`."""
        path = Path(folder) / RECORD_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        return path


def load_record(folder: str | Path) -> RunRecord | None:
    """The record in `folder`; None without one.

    Raises:
        ValueError: it cannot be read.
    """
    path = Path(folder) / RECORD_NAME
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        known = {f.name for f in fields(RunRecord)}
        return RunRecord(**{name: value for name, value in values.items() if name in known})
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{RECORD_NAME} must be as hf_cyclprune wrote it; got {error} in {folder}. Delete it "
            "to do without."
        ) from error
