"""The training loss of a whole run, also of one that was resumed.

transformers reports the mean over the steps since the last start, so that a resumed run shows
another train_loss than an uninterrupted one.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import TrainOutput

from hf_cyclprune.training.trainer import PruningTrainer


class LossTotal(TrainerCallback, ExportableState):
    """Sum of the losses of all optimizer steps so far; part of every checkpoint.

    Losses that are not finite are left out, as transformers does by default.
    """

    def __init__(self) -> None:
        self.total = torch.zeros(())

    def add(self, loss: Tensor) -> None:
        """Without waiting for the device."""
        self.total = self.total.to(loss.device) + torch.nan_to_num(loss, 0.0, 0.0, 0.0)

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"total": float(self.total)}}

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        name = type(self).__name__
        states: Any = state.stateful_callbacks
        saved = states.get(name, {}).get("attributes", {})
        self.total = torch.tensor(saved.get("total", 0.0))
        states.setdefault(name, self.state())  # or the first save of a resumed run fails


class GlueTrainer(PruningTrainer):
    """PruningTrainer whose train_loss is the mean over the whole run (in one process)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, callbacks=[LossTotal()], **kwargs)

    def _losses(self) -> LossTotal:
        """A resumed Trainer may have replaced it."""
        return next(c for c in self.callback_handler.callbacks if isinstance(c, LossTotal))

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)
        self._losses().add(loss)
        return loss

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        result: TrainOutput = super().train(*args, **kwargs)
        if self.args.world_size > 1 or result.global_step == 0:
            return result
        loss = float(self._losses().total) / result.global_step
        return TrainOutput(result.global_step, loss, {**result.metrics, "train_loss": loss})
