"""An exponential moving average of the weights, over the last steps of a run, with fixed masks.

With decay d, after n steps with the same masks, whose weights are w_1 .. w_n:

    average = (1 - d) / (1 - d^n) * sum over i of d^(n - i) w_i

The factor makes it a mean from the first step on (Kingma and Ba 2014, section 3,
https://arxiv.org/abs/1412.6980). It begins with the last step at which the schedule recomputes
masks, and anew if masks are recomputed later: a pruned weight is zero in every w_i.

`pruning_average.safetensors` in a checkpoint holds the average of every weight under its name, and
n in its metadata, under "num_steps".
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from hf_cyclprune.engines.shards import Shards, plain_name
from hf_cyclprune.files import AVERAGE_NAME, whole_file
from hf_cyclprune.pruning.schedules import Schedule


def first_fixed_step(schedule: Schedule) -> int:
    """Return the first optimizer step after which the masks are those of the end of the run.

    Raises:
        ValueError: it is the last one, so that there is nothing to average.
    """
    steps = range(schedule.total_steps, 0, -1)
    last = next((t for t in steps if schedule.is_pruning_step(t)), 1)
    if last == schedule.total_steps:
        raise ValueError(
            "ema_decay must come with fixed masks at the end of the run; got masks that change "
            f"until its last optimizer step, {last}. Lower ramp_ratio, choose another recompute, "
            "or leave ema_decay out."
        )
    return last


class WeightAverage:
    """The average of all weights that are trained, and how many steps are in it.

    Args:
        model: read after every optimizer step, and changed at the end.
        decay: in [0, 1).
        schedule: says from which step on the masks are fixed.
        optimizer: moves the weights.

    Raises:
        ValueError: they are never fixed.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float,
        schedule: Schedule,
        optimizer: Optimizer | None = None,
    ) -> None:
        self._decay = decay
        self._first_step = first_fixed_step(schedule)
        trained = {
            plain_name(name): weight
            for name, weight in model.named_parameters()
            if weight.requires_grad and weight.is_floating_point()
        }
        self._shards = Shards(trained, optimizer)
        self.values: dict[str, Tensor] = {}
        """Name -> average, in fp32 where the weight has less."""
        self.num_steps = 0
        self.is_applied = False
        """Whether the weights in the model are the average."""

    @torch.no_grad()
    def update(self, t: int, *, is_recomputed: bool, is_pending: bool) -> None:
        """Add the weights after optimizer step t.

        Args:
            t: optimizer steps taken, 1, 2, 3.
            is_recomputed: whether masks were recomputed in this step.
            is_pending: whether masks are still to be recomputed.
        """
        if is_recomputed or is_pending:
            self.num_steps = 0
        if t < self._first_step or is_pending:
            return
        self.num_steps += 1
        share = (1 - self._decay) / (1 - self._decay**self.num_steps)
        for name, shard in self._shards.items():
            weight = shard.weight
            if self.num_steps == 1:
                dtype = torch.promote_types(weight.dtype, torch.float32)
                self.values[name] = weight.to(dtype, copy=True)
            else:
                self.values[name].lerp_(weight.to(self.values[name].dtype), share)

    @torch.no_grad()
    def apply_(self) -> None:
        """Put the average into the model, if there is one."""
        self.is_applied = self.num_steps > 0
        for name, shard in self._shards.items() if self.is_applied else ():
            shard.weight.copy_(self.values[name])
        self._shards.spread_()

    def wholes(self) -> dict[str, Tensor]:
        """Return the average of whole weights; asks all ranks."""
        return {name: self._shards[name].gather(value) for name, value in self.values.items()}

    def save(self, folder: Path, wholes: Mapping[str, Tensor]) -> None:
        """Write what `wholes` returned into a checkpoint, or delete that of other steps."""
        path = folder / AVERAGE_NAME
        if self.num_steps == 0:
            path.unlink(missing_ok=True)
            return
        tensors = {name: value.contiguous() for name, value in wholes.items()}
        with whole_file(path) as temporary:
            save_file(tensors, temporary, metadata={"num_steps": str(self.num_steps)})

    def resume(self, checkpoint: Path | None, step: int) -> None:
        """Go on with the average in the checkpoint of optimizer step `step`, if there is one.

        Raises:
            ValueError: it is of other weights, or it had begun and there is no checkpoint.
        """
        if checkpoint is None and step >= self._first_step:
            raise ValueError(
                "ema_decay must be left out to resume from a checkpoint without the average; got a "
                f"run with one since step {self._first_step}. PruningTrainer saves it with each "
                "checkpoint, and PruningCallback with those in output_dir."
            )
        if checkpoint is None or not (checkpoint / AVERAGE_NAME).is_file():
            return
        with safe_open(checkpoint / AVERAGE_NAME, framework="pt") as file:
            num_steps = int(file.metadata()["num_steps"])
            saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        odd = sorted(saved.keys() ^ self._shards.keys())
        if odd:
            raise ValueError(
                "The checkpoint's average is not of the weights that are trained: they differ at "
                f"'{odd[0]}'. Resume with the same trained weights."
            )
        self.num_steps = num_steps
        self.values = {
            name: shard.part_of(saved[name]).to(shard.weight.device, copy=True)
            for name, shard in self._shards.items()
        }
