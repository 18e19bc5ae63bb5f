"""One line in the console for every cycle that has ended, with its evaluation."""

import logging
from typing import Any

from tqdm.auto import tqdm  # type: ignore[import-untyped]
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils.logging import get_verbosity

from hf_cyclprune.reporting.cycles import CycleHistory


class CycleLines(TrainerCallback):
    """Records the evaluation at a cycle's end, and then shows one line on the cycle.

    The evaluation may follow the step itself or, with `eval_strategy="epoch"`, the epoch: a cycle
    stays open for it until the next step begins, or training ends.
    """

    def __init__(self) -> None:
        self.history = CycleHistory()
        self._is_open = False
        self._num_cycles: int | None = None

    def restart(self) -> None:
        """Call when training starts."""
        self.history, self._is_open = CycleHistory(), False

    def open_cycle(self, num_cycles: int | None) -> None:
        """Call when the history has a new cycle, of `num_cycles` in all; None shows no line."""
        self._is_open, self._num_cycles = True, num_cycles

    def close_cycle(self, args: TrainingArguments, state: TrainerState) -> None:
        """Show the line, unless that is done."""
        if self._is_open and self._num_cycles is not None:
            show_line(self.history.cycles[-1].describe(self._num_cycles), args, state)
        self._is_open = False

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._is_open:
            self.history.observe_evaluation(state.global_step, kwargs.get("metrics") or {})

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close_cycle(args, state)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if "train_loss" in (kwargs.get("logs") or {}):  # the summary of the run: the line is first
            self.close_cycle(args, state)


def show_line(line: str, args: TrainingArguments, state: TrainerState) -> None:
    """Print it as the Trainer prints its own: above the progress bar, or plainly without one.

    Only the first process does. Nothing is shown with `logging_strategy="no"`, nor where
    transformers shows errors only: by `log_level="error"` or `set_verbosity_error()`.
    """
    is_wanted = args.logging_strategy != "no" and get_verbosity() <= logging.WARNING
    if not (is_wanted and state.is_world_process_zero):
        return
    if args.disable_tqdm:
        print(line)
    else:
        tqdm.write(line)
