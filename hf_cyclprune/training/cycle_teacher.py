"""`teacher="last_cycle"`: what the previous cycle ended with teaches the cycles after it.

`cycle_teacher.safetensors` in a checkpoint holds the weights and buffers of that model.
"""

import copy
from pathlib import Path

from safetensors.torch import load_model, save_model
from torch import nn

from hf_cyclprune.files import CYCLE_TEACHER_NAME, whole_file


class CycleTeacher:
    """A copy of the model that is trained, as it was at the end of the previous cycle.

    In the first cycle there is none, and the labels have all of the loss.
    """

    def __init__(self, student: nn.Module) -> None:
        self._student = student
        self.model: nn.Module | None = None
        """None in the first cycle."""

    def take(self) -> nn.Module:
        """Copy the model as it is now; return the copy."""
        self.model = copy.deepcopy(self._student).requires_grad_(False)
        return self.model

    def save(self, folder: Path) -> None:
        """Write the copy into a checkpoint, if there is one."""
        if self.model is not None:
            with whole_file(folder / CYCLE_TEACHER_NAME) as temporary:
                save_model(self.model, str(temporary))

    def resume(self, checkpoint: Path | None, is_due: bool) -> None:
        """Take the copy of a checkpoint; `is_due` says whether a cycle has ended before it.

        Raises:
            ValueError: there is none, although a cycle has ended.
        """
        if not is_due:
            return
        path = checkpoint / CYCLE_TEACHER_NAME if checkpoint is not None else None
        if path is None or not path.is_file():
            raise ValueError(
                "teacher='last_cycle' needs the model of the previous cycle to resume, but the "
                f"checkpoint has no {CYCLE_TEACHER_NAME}. Resume from one that a run with this "
                "teacher saved, with PruningTrainer, or begin a new run."
            )
        model = self.take()
        load_model(model, path, device=str(next(model.parameters()).device))
