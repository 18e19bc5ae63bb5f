"""One line in the console for every cycle that has ended, with its evaluation."""

import logging

from tqdm.auto import tqdm  # type: ignore[import-untyped]
from transformers import TrainerState, TrainingArguments
from transformers.utils.logging import get_verbosity

from hf_cyclprune.training.run import PruningRun


class CycleLog:
    """Shows a line on each cycle, once it cannot be evaluated any more.

    The evaluation may follow the cycle's last step or, with `eval_strategy="epoch"`, the epoch: a
    cycle stays open for it until the next step begins, or training ends.
    """

    def __init__(self) -> None:
        self.is_open = False
        """Whether a cycle has ended and no step was begun since."""

    def close(self, run: PruningRun | None, args: TrainingArguments, state: TrainerState) -> None:
        """Show the line of the cycle that is open, if there is one."""
        if self.is_open and run is not None and run.has_cycles:
            cycle = run.history.cycles[-1]
            show_line(cycle.describe(run.pruner.schedule.num_cycles), args, state)
        self.is_open = False


def show_line(line: str, args: TrainingArguments, state: TrainerState) -> None:
    """Print a line as the Trainer prints its own: above the progress bar, or plainly without one.

    Only the first process prints. Nothing is shown with `logging_strategy="no"`, nor where
    transformers shows errors only: by `log_level="error"` or `set_verbosity_error()`.
    """
    is_wanted = args.logging_strategy != "no" and get_verbosity() <= logging.WARNING
    if not (is_wanted and state.is_world_process_zero):
        return
    if args.disable_tqdm:
        print(line)
    else:
        tqdm.write(line)
