"""The training loss of a whole run, also of one that was resumed.

transformers reports the mean over the steps since the last start, so that a resumed run shows
another train_loss than an uninterrupted one.
"""

import math
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import TrainOutput

from hf_cyclprune.config import PruningConfig
from hf_cyclprune.training.trainer import PruningTrainer
from hf_cyclprune.training.upstream import is_loss_inflated


class LossTotal(TrainerCallback, ExportableState):
    """Sum of the losses of all micro-batches so far; part of every checkpoint.

    Losses that are not finite are left out of the mean.
    """

    def __init__(self) -> None:
        self.total = torch.zeros(())
        self.num_finite = torch.zeros((), dtype=torch.int64)
        self.num_losses = 0

    def add(self, loss: Tensor) -> None:
        """Without waiting for the device."""
        is_finite = torch.isfinite(loss)
        self.total = self.total.to(loss.device) + torch.where(is_finite, loss, 0.0)
        self.num_finite = self.num_finite.to(loss.device) + is_finite
        self.num_losses += 1

    def mean(self, num_steps: int) -> float:
        """Per optimizer step; NaN without a finite loss."""
        if not int(self.num_finite):
            return math.nan
        return float(self.total) / num_steps * (self.num_losses / int(self.num_finite))

    def state(self) -> dict[str, Any]:
        values = {
            "total": float(self.total),
            "num_finite": int(self.num_finite),
            "num_losses": self.num_losses,
        }
        return {"args": {}, "attributes": values}

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        name = type(self).__name__
        states: Any = state.stateful_callbacks
        saved = states.get(name, {}).get("attributes", {})
        self.total = torch.tensor(saved.get("total", 0.0))
        self.num_finite = torch.tensor(saved.get("num_finite", 0))
        self.num_losses = saved.get("num_losses", 0)
        states.setdefault(name, self.state())  # or the first save of a resumed run fails


class GlueTrainer(PruningTrainer):
    """PruningTrainer for dense and pruned runs that are to be compared.

    train_loss is the mean over the whole run (in one process), and the loss is scaled alike in both
    (`fix_loss_scaling`).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, callbacks=[LossTotal()], **kwargs)

    def _prepare_run(self) -> PruningConfig | None:
        config = super()._prepare_run()
        args: Any = self.args
        if config is None and args.fix_loss_scaling and is_loss_inflated(self._bare_model()):
            self.model_accepts_loss_kwargs = False
        return config

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
        loss = self._losses().mean(result.global_step)
        return TrainOutput(result.global_step, loss, {**result.metrics, "train_loss": loss})
