"""Training stops, and a best model is chosen, only where the model is at its target sparsity."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback
from transformers import TrainerControl as Control
from transformers import TrainerState as State
from transformers import TrainingArguments as Args
from transformers.trainer_callback import CallbackHandler
from transformers.utils import logging

from hf_cyclprune.pruning.pruner import Pruner
from hf_cyclprune.training.health import warn_if_off_target

logger = logging.get_logger(__name__)

# No number of evaluations brings a patience counter from here to its limit.
_OUT_OF_REACH = -(10**9)


class StopGate(TrainerCallback):
    """Defers a stop asked for off target to the end of the first cycle that ends at the target.

    Must be the last callback, so that it sees what the others ask for. Lets pass: the last step of
    the run, an epoch without a single step (the data is exhausted), and a preemption for which
    transformers has just saved a checkpoint. A checkpoint does not remember a deferred stop.
    The argument `pruner` returns the pruner in force, or None.
    """

    def __init__(self, pruner: Callable[[], Pruner | None]) -> None:
        self._pruner = pruner
        self._handler: CallbackHandler | None = None
        self.is_preempted = False
        """Set by the Trainer when it saves because the process is about to be stopped."""
        self._is_stop_wanted = False
        self._step_at_epoch_begin = -1

    @property
    def is_off_target(self) -> bool:
        """Whether something is pruned, and not to the target sparsity."""
        pruner = self._pruner()
        return pruner is not None and not pruner.is_at_target

    def move_last(self, handler: CallbackHandler) -> None:
        """Become the last callback of a handler, which may be going through its callbacks."""
        self._handler = handler
        handler.callbacks = [*(c for c in handler.callbacks if c is not self), self]

    @contextmanager
    def held_patience(self, handler: CallbackHandler, is_training: bool) -> Iterator[None]:
        """Inside, an evaluation off target leaves the patience of early stopping as it was."""
        is_held = is_training and self.is_off_target
        callbacks = handler.callbacks if is_held else []
        stoppers = [c for c in callbacks if isinstance(c, EarlyStoppingCallback)]
        counters = [stopper.early_stopping_patience_counter for stopper in stoppers]
        for stopper in stoppers:
            stopper.early_stopping_patience_counter = _OUT_OF_REACH
        try:
            yield
        finally:
            for stopper, counter in zip(stoppers, counters, strict=True):
                stopper.early_stopping_patience_counter = counter

    def on_train_begin(self, args: Args, state: State, control: Control, **kwargs: object) -> None:
        self._is_stop_wanted = self.is_preempted = False
        if self._handler is not None:  # a resumed Trainer may have put others behind the gate
            self.move_last(self._handler)

    def on_epoch_begin(self, args: Args, state: State, control: Control, **kwargs: object) -> None:
        self._step_at_epoch_begin = state.global_step

    def on_step_end(self, args: Args, state: State, control: Control, **kwargs: object) -> Control:
        pruner = self._pruner()
        if self._is_stop_wanted and pruner is not None and pruner.is_at_target:
            control.should_training_stop |= pruner.schedule.is_cycle_end(state.global_step)
        return self._defer(args, state, control)

    def on_epoch_end(self, args: Args, state: State, control: Control, **kwargs: object) -> Control:
        if state.global_step == self._step_at_epoch_begin:
            return control
        return self._defer(args, state, control)

    def _defer(self, args: Args, state: State, control: Control, **kwargs: object) -> Control:
        is_allowed = state.global_step >= state.max_steps or self.is_preempted
        if not control.should_training_stop or is_allowed or not self.is_off_target:
            return control
        if not self._is_stop_wanted:
            logger.warning(
                f"A stop was asked for at optimizer step {state.global_step}, below the target "
                "sparsity. Training goes on to the end of the cycle."
            )
        self._is_stop_wanted = True
        control.should_training_stop = False
        return control

    on_evaluate = on_log = on_save = _defer


@contextmanager
def left_masked(trainer: Any) -> Iterator[None]:
    """Inside, a PruningTrainer trains; however it ends, no pruned weight keeps a value.

    If a person interrupts it off target, warns.
    """
    try:
        yield
    except KeyboardInterrupt:
        if trainer.pruning_run is not None:
            warn_if_off_target(trainer.pruning_run, trainer.state)
        raise
    finally:
        if trainer.pruning_run is not None:
            trainer.pruning_run.end()
