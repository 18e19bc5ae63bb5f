"""Training stops, and a best model is chosen, only where the model is at its target sparsity."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.utils import logging

from hf_cyclprune.pruning.pruner import Pruner

logger = logging.get_logger(__name__)

# No number of evaluations brings a patience counter from here to its limit.
_OUT_OF_REACH = -(10**9)


@contextmanager
def held_patience(callbacks: Iterable[TrainerCallback]) -> Iterator[None]:
    """Inside, an evaluation leaves the patience of every EarlyStoppingCallback as it was."""
    stoppers = [c for c in callbacks if isinstance(c, EarlyStoppingCallback)]
    counters = [stopper.early_stopping_patience_counter for stopper in stoppers]
    for stopper in stoppers:
        stopper.early_stopping_patience_counter = _OUT_OF_REACH
    try:
        yield
    finally:
        for stopper, counter in zip(stoppers, counters, strict=True):
            stopper.early_stopping_patience_counter = counter


class StopGate(TrainerCallback):
    """Defers a stop asked for off target to the end of the first cycle that ends at the target.

    Must be the last callback, so that it sees what the others ask for. Lets pass: the last step of
    the run, an epoch without a single step (the data is exhausted), and a preemption for which
    transformers has just saved a checkpoint. A checkpoint does not remember a deferred stop.

    Args:
        pruner: the pruner in force, or None.
        move_last: makes this the last callback; called when training starts, since a resumed
            Trainer may have put others behind it.
    """

    def __init__(self, pruner: Callable[[], Pruner | None], move_last: Callable[[], None]) -> None:
        self._pruner = pruner
        self._move_last = move_last
        self.is_preempted = False
        """Set by the Trainer when it saves because the process is about to be stopped."""
        self._is_stop_wanted = False
        self._step_at_epoch_begin = -1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._is_stop_wanted = self.is_preempted = False
        self._move_last()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._step_at_epoch_begin = state.global_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        pruner = self._pruner()
        if self._is_stop_wanted and pruner is not None and pruner.is_at_target:
            control.should_training_stop |= pruner.schedule.is_cycle_end(state.global_step)
        return self._defer(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if state.global_step == self._step_at_epoch_begin:
            return control
        return self._defer(state, control)

    def _on_later_event(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        return self._defer(state, control)

    on_evaluate = on_log = on_save = _on_later_event

    def _defer(self, state: TrainerState, control: TrainerControl) -> TrainerControl:
        if not control.should_training_stop or self._is_allowed(state):
            return control
        if not self._is_stop_wanted:
            logger.warning(
                f"A stop was asked for at optimizer step {state.global_step}, below the target "
                "sparsity. Training goes on to the end of the cycle."
            )
        self._is_stop_wanted = True
        control.should_training_stop = False
        return control

    def _is_allowed(self, state: TrainerState) -> bool:
        pruner = self._pruner()
        return (
            pruner is None
            or pruner.is_at_target
            or state.global_step >= state.max_steps
            or self.is_preempted
        )
