"""Which metrics belong to the weights that a Trainer has in memory."""

from collections.abc import Mapping
from typing import Any

from transformers import Trainer

from hf_cyclprune.reporting.metrics import evaluated


class Evaluations:
    """The last evaluation of a Trainer, and the optimizer step whose weights it was about."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.forget()

    def forget(self) -> None:
        """Begin anew, since the weights of a step will be others."""
        self._weights, self._metrics = (-1, False), dict[str, float]()

    @property
    def weights_step(self) -> int:
        """The optimizer step after which the weights in memory stood."""
        trainer, state = self._trainer, self._trainer.state
        is_best = trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None
        step = state.best_global_step if is_best and not trainer.is_in_train else None
        return state.global_step if step is None else step

    def _weights_in_memory(self) -> tuple[int, bool]:
        """Return the step of the weights, and whether they are an average over the last steps."""
        run = getattr(self._trainer, "pruning_run", None)
        return self.weights_step, run is not None and run.is_averaged

    def add(self, metrics: Mapping[str, Any], is_other_set: bool) -> None:
        """Remember the metrics of the weights in memory.

        An evaluation on another data set adds its metrics, but replaces none of the usual set.
        """
        weights = self._weights_in_memory()
        before = self._metrics if self._weights == weights else {}
        new = evaluated(metrics)
        self._weights = weights
        self._metrics = {**new, **before} if is_other_set else {**before, **new}

    def latest(self) -> dict[str, float]:
        """Return the metrics of the weights in memory; {} if they were not evaluated."""
        step, is_averaged = weights = self._weights_in_memory()
        if self._weights == weights:
            return self._metrics
        if is_averaged:
            return {}
        logged = [entry for entry in self._trainer.state.log_history if entry.get("step") == step]
        return {name: value for entry in logged for name, value in evaluated(entry).items()}
