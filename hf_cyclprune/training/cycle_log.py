"""Shows a line about a cycle in the console, where the Trainer shows its own lines."""

import logging

from tqdm.auto import tqdm  # type: ignore[import-untyped]
from transformers import TrainerState, TrainingArguments
from transformers.utils.logging import get_verbosity


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
