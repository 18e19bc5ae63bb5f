"""What a pruned weight is while it is pruned: gone, or a value that waits, learns or fades.

The model is always masked between two optimizer steps, when it is evaluated or saved. A policy that
keeps values holds them in a copy of the target weights, and **opens** the weights, that is puts
these values back into them, for a part of the step:

    "pruning": while masks are recomputed: kept and pruned weights are ranked by their values
    "update":  also for the optimizer's step: the update moves the pruned weights too
    "forward": also for the forward and backward pass: the pruned weights take part

To add a policy, register a subclass of `PrunedWeights`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from hf_cyclprune.engines.shards import Shards

PRUNED_WEIGHTS: dict[str, type["PrunedWeights"]] = {}
"""Every policy under the name that `PruningConfig.pruned_weights` takes."""

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_Policy = TypeVar("_Policy", bound="type[PrunedWeights]")


def pruned_weights(name: str) -> Callable[[_Policy], _Policy]:
    """Register a policy under `name`."""

    def register(policy: _Policy) -> _Policy:
        PRUNED_WEIGHTS[name] = policy
        return policy

    return register


def bits(weight: Tensor) -> Tensor:
    """View a weight as integers: times a mask they give +0.0, where floats leave -0.0 and NaN."""
    return weight.detach().view(_BITS[weight.element_size()])


@pruned_weights("zero")
@dataclass
class PrunedWeights:
    """Zero, and if it comes back it starts from zero: the paper's, which needs no memory.

    Args:
        shards: name -> the part of a target that is held here, changed in place.
        masks: name -> bool, True = kept; changed by the pruner.
        decay: the policy's coefficient, if it has one.
    """

    shards: Shards
    masks: Mapping[str, Tensor]
    decay: float = 0.0
    values: dict[str, Tensor] = field(default_factory=dict)
    """Name -> the values of the pruned weights, +0.0 for kept ones; {} if none are kept."""
    is_open: bool = False

    opens_before = ""
    """ "pruning", "update" or "forward"; "" if values are never put back."""

    @property
    def keeps_values(self) -> bool:
        """Whether a weight comes back with a value."""
        return bool(self.opens_before)

    def start(self) -> None:
        """Begin with the weights as they are; called once, when all are kept or their zeros are."""
        if self.keeps_values:
            self.values = {n: torch.zeros_like(s.weight) for n, s in self.shards.items()}

    def open_(self) -> None:
        """Put the kept values back into the pruned weights, if there are any."""
        if self.keeps_values and not self.is_open:
            self.mask_()  # the optimizer's step may have moved a pruned weight
            for name, shard in self.shards.items():
                shard.weight.add_(self.values[name])  # exact: one of the two is zero
            self.is_open = True

    def before_update(self, names: Iterable[str]) -> None:
        """Change the gradients of these open weights before the optimizer's step."""

    def close_(self, position: float) -> None:
        """Take the values of the pruned weights out again, and mask.

        Args:
            position: in [0, 1], how much of the time in which values may change is over.
        """
        if self.is_open:
            for name in self.shards:
                self.take(name, position)
            self.is_open = False
        self.mask_()

    def take(self, name: str, position: float) -> None:
        """Keep the values of the pruned weights of one open target."""
        value = self.values[name].copy_(self.shards[name].weight)
        bits(value).mul_(~self.masks[name])

    def mask_(self) -> None:
        """Set every pruned weight to +0.0 in place, even one that holds NaN or infinity."""
        for name, shard in self.shards.items():
            bits(shard.weight).mul_(self.masks[name])

    def find_unmasked(self) -> str | None:
        """Return the first target with a pruned weight here that is not +0.0; None without one."""
        for name, shard in self.shards.items():
            if bool((bits(shard.weight) * ~self.masks[name]).any()):
                return name
        return None

    def value(self, name: str) -> Tensor:
        """Return a target with the values that its pruned weights would come back with."""
        weight = self.shards[name].weight
        return weight if self.is_open or not self.keeps_values else weight + self.values[name]

    def saved(self, name: str) -> Tensor:
        """Return what a checkpoint needs of the values of a whole target.  # (number pruned,)

        Asks all ranks.
        """
        shard = self.shards[name]
        return shard.gather(self.values[name])[~shard.gather(self.masks[name])]

    def load(self, name: str, saved: Tensor) -> None:
        """Take back what `saved` returned; the masks are those of the same checkpoint."""
        shard, known = self.shards[name], self.values[name]
        mask = shard.gather(self.masks[name])
        whole = torch.zeros_like(mask, dtype=known.dtype)
        whole[~mask] = saved.to(known)
        known.copy_(shard.part_of(whole))


@pruned_weights("stored")
class Stored(PrunedWeights):
    """The value it had when it was pruned, with which it is ranked and comes back.

    Memory: one copy of the target weights. Time: only in pruning steps.
    """

    opens_before = "pruning"


@pruned_weights("pretrained")
class Pretrained(PrunedWeights):
    """The value it had at the start of training, with which it is ranked and comes back.

    Memory: one copy of the target weights. Time: only in pruning steps.
    """

    opens_before = "pruning"

    def start(self) -> None:
        self.values = {name: shard.weight.clone() for name, shard in self.shards.items()}

    def open_(self) -> None:
        if not self.is_open:
            self.mask_()
            for name, shard in self.shards.items():
                shard.weight.copy_(self.value(name))
            self.is_open = True

    def take(self, name: str, position: float) -> None:
        """Nothing is taken: the values are fixed."""

    def saved(self, name: str) -> Tensor:
        return self.shards[name].gather(self.values[name])

    def load(self, name: str, saved: Tensor) -> None:
        self.values[name].copy_(self.shards[name].part_of(saved))

    def value(self, name: str) -> Tensor:
        return torch.where(self.masks[name], self.shards[name].weight, self.values[name])


@pruned_weights("latent")
class Latent(PrunedWeights):
    """A dense copy keeps learning from the gradient at the sparse point: a straight-through
    estimator (Lin et al. 2020, DPF, https://arxiv.org/abs/2006.07253, equation 3).

    `decay` pulls the pruned values to zero: lambda (1 - M) w is added to their gradient (Zhou et
    al. 2021, SR-STE, https://arxiv.org/abs/2102.04010, equation 9).

    Memory: one copy of the target weights. Time: three more passes over them in every step.
    """

    opens_before = "update"

    def before_update(self, names: Iterable[str]) -> None:
        for name in names if self.decay else ():
            shard = self.shards[name]
            if shard.gradient is not None:
                shard.gradient.add_(shard.weight * ~self.masks[name], alpha=self.decay)


@pruned_weights("decay")
class Decay(PrunedWeights):
    """It takes part in training, but shrinks ever faster, until it is zero: growing regularization
    (Wang et al. 2021, GReg, https://arxiv.org/abs/2012.09243, section 3.2).

    After every step it is multiplied by 1 - `decay` times the position, which grows from 0 to 1 in
    the time in which values may change: a weight decay apart from the gradient, as in AdamW. At
    position 1 it is zero. An evaluation meanwhile sees it as zero.

    Memory: one copy of the target weights. Time: three more passes over them in every step.
    """

    opens_before = "forward"

    def take(self, name: str, position: float) -> None:
        super().take(name, position)
        self.values[name].mul_(1.0 - self.decay * position if position < 1.0 else 0.0)
