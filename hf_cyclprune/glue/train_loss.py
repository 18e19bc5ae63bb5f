"""The training loss of a whole run, also of one that was resumed.

transformers reports the mean over the steps since the last start, so that a resumed run would have
another train_loss than an uninterrupted one.
"""

import math
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState

from hf_cyclprune.training.upstream import add_missing_state


class LossTotal(TrainerCallback, ExportableState):
    """Sums the losses of all micro-batches so far; the sum is part of every checkpoint.

    Losses that are not finite are left out of the mean.
    """

    def __init__(self) -> None:
        self.total = torch.zeros(())
        self.num_finite = torch.zeros((), dtype=torch.int64)
        self.num_losses = 0

    def on_loss(self, loss: Tensor) -> None:
        """Add the loss of a micro-batch, without waiting for the device."""
        is_finite = torch.isfinite(loss)
        self.total = self.total.to(loss.device) + torch.where(is_finite, loss, 0.0)
        self.num_finite = self.num_finite.to(loss.device) + is_finite
        self.num_losses += 1

    def mean(self, num_steps: int) -> float:
        """Return the mean loss of an optimizer step; NaN without a finite loss."""
        if not int(self.num_finite):
            return math.nan
        return float(self.total) / num_steps * (self.num_losses / int(self.num_finite))

    def state(self) -> dict[str, Any]:
        total, num_finite = float(self.total), int(self.num_finite)
        values = {"total": total, "num_finite": num_finite, "num_losses": self.num_losses}
        return {"args": {}, "attributes": values}

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        name = type(self).__name__
        states: Any = state.stateful_callbacks
        saved = states.get(name, {}).get("attributes", {})
        self.total = torch.tensor(saved.get("total", 0.0))
        self.num_finite = torch.tensor(saved.get("num_finite", 0))
        self.num_losses = saved.get("num_losses", 0)
        add_missing_state(state, name, self.state())


def train_loss_of(trainer: Trainer) -> dict[str, float]:
    """Return the mean loss of a whole run, as `train_loss`; {} if it has no steps.

    {} also where the Trainer runs in several processes, each of which sees only its own losses.
    """
    num_steps = trainer.state.global_step
    if trainer.args.world_size > 1 or num_steps == 0:
        return {}
    # A resumed Trainer may have replaced the callback.
    callbacks = trainer.callback_handler.callbacks
    total = next(callback for callback in callbacks if isinstance(callback, LossTotal))
    return {"train_loss": total.mean(num_steps)}
