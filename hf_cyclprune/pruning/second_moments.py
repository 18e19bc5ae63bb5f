"""The moving average of each weight's squared gradient: Adam's, or our own where there is none."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hf_cyclprune.engines.shard import unwrapped
from hf_cyclprune.engines.shards import Shards

BETA = 0.999  # Adam's default


@dataclass
class SecondMoments:
    """v = E[g^2] of every target, corrected for its start at zero as in Adam.

    Read from the state of the optimizer (`exp_avg_sq`, as Adam and AdamW keep it in fp32), which
    costs nothing. With an optimizer without it (SGD, Adafactor), or none, our own average is kept:
    one fp32 number per target weight, saved with every checkpoint.

    Args:
        shards: name -> the part of a target that is held here.
        optimizer: the one that moves them; may be wrapped, as accelerate does.
    """

    shards: Shards
    optimizer: Optimizer | None = None
    own: dict[str, Tensor] = field(default_factory=dict)
    """Name -> our average, where the optimizer has none."""
    num_steps: dict[str, int] = field(default_factory=dict)
    """Name -> optimizer steps in our average."""

    def _of_optimizer(self, name: str) -> tuple[Tensor, Tensor | float] | None:
        """Return Adam's second moment and the number of steps in it; None if there is none."""
        state = self.shards[name].state_of(self.optimizer)
        moment = state.get("exp_avg_sq")
        if isinstance(moment, Tensor) and moment.shape == self.shards[name].weight.shape:
            return moment, state["step"]
        return None

    @property
    def is_known(self) -> bool:
        """Whether a step was taken; waits for the device."""
        found = map(self._of_optimizer, self.shards)
        return bool(self.own) or any(f is not None and float(f[1]) > 0 for f in found)

    def observe(self, name: str, gradient: Tensor) -> None:
        """Add a step's gradient to our own average, unless the optimizer keeps one."""
        if self._of_optimizer(name) is not None:
            self.own.pop(name, None)
            self.num_steps.pop(name, None)
            return
        if name not in self.own:
            self.own[name] = torch.zeros_like(gradient, dtype=torch.float32)
            self.num_steps[name] = 0
        gradient = finite(gradient)
        self.own[name].mul_(BETA).addcmul_(gradient, gradient, value=1.0 - BETA)
        self.num_steps[name] += 1

    def of(self, name: str, rows: slice) -> Tensor:
        """Return v of some rows of a target, shaped as they are.

        A weight that has had no gradient, such as that of an expert that no token has reached or of
        a layer that was dropped in all steps, has 0: the loss does not depend on it so far.

        Raises:
            ValueError: no weight has had one.
        """
        found = self._of_optimizer(name)
        if found is not None:
            moment, num_steps = found
            groups: Any = getattr(unwrapped(self.optimizer), "param_groups", [{}])
            beta = float(groups[0].get("betas", (0.0, BETA))[1])
            return moment[rows] / (1.0 - beta**num_steps)
        if name in self.own:
            return self.own[name][rows] / (1.0 - BETA ** self.num_steps[name])
        if self.own or any(self._of_optimizer(other) is not None for other in self.shards):
            return torch.zeros_like(self.shards[name].weight[rows], dtype=torch.float32)
        raise ValueError(
            "The criterion needs the mean squared gradient of the target weights, but no step was "
            f"taken, not with '{name}' either. Use criterion='magnitude', or give the pruner the "
            "optimizer, or each step's gradients with before_update."
        )


def finite(gradient: Tensor) -> Tensor:
    """Return a gradient with 0 for NaN and infinity: an overflow must not stay in an average."""
    return gradient.nan_to_num(0.0, 0.0, 0.0)
