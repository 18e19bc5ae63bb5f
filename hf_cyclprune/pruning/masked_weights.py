"""The targets and their masks: which are ranked together, and how many weights are pruned."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from hf_cyclprune.engines.shards import Shards
from hf_cyclprune.pruning.blocks import is_input_last
from hf_cyclprune.pruning.patterns import Pattern


class MaskedWeights:
    """Weights with a mask each, in groups that are ranked together."""

    targets: Mapping[str, Tensor]
    pattern: Pattern
    optimizer: Optimizer | None
    shards: Shards
    """Name -> the part of a target that this process updates: all of it, or some rows."""
    shapes: dict[str, tuple[int, ...]]
    """Name -> shape of the whole target."""
    groups: list[tuple[str, ...]]
    """Names of the targets that are ranked together."""
    masks: dict[str, Tensor]
    """Name -> bool, shaped as the part of the target that is held here, True = kept."""
    num_pruned: list[int]
    """Pruned weights of each group, in whole targets, by `masks`."""

    def lay_out(self) -> None:
        """Make masks of the targets in which all weights are kept.

        Raises:
            ValueError: n:m does not fit a weight; an engine divides one in an unknown way.
        """
        self.shards = Shards(self.targets, self.optimizer)
        self.shapes = {name: shard.shape for name, shard in self.shards.items()}
        turned = {name for name, weight in self.targets.items() if not is_input_last(weight)}
        self.pattern.check({n: s[::-1] if n in turned else s for n, s in self.shapes.items()})
        self.groups = self.pattern.groups(self.shapes)
        self.masks = {
            name: torch.ones(shard.weight.shape, dtype=torch.bool, device=shard.weight.device)
            for name, shard in self.shards.items()
        }
        self.num_pruned = [0] * len(self.groups)
        self.num_returned = next(iter(self.masks.values())).new_zeros((), dtype=torch.int64)
        """How often a pruned weight came back so far; int64, on the device of the weights."""

    @property
    def num_weights(self) -> int:
        """Target weights, pruned or not."""
        return self.shards.size(self.shards)

    @property
    def sparsity(self) -> float:
        """Pruned share of the target weights, by the masks."""
        return sum(self.num_pruned) / self.num_weights

    def size(self, group: int) -> int:
        """Weights of a group, pruned or not."""
        return self.shards.size(self.groups[group])

    def demand(self, sparsity: float) -> list[int]:
        """Pruned weights of each group at this sparsity."""
        return self.pattern.num_pruned(self.shapes, sparsity)

    def take_zeros(self) -> None:
        """Make the zeros that the weights have now the masks."""
        for name, shard in self.shards.items():
            self.masks[name].copy_(shard.weight != 0)
        self.count_pruned()

    def count_pruned(self) -> None:
        """Set `num_pruned` to what is pruned in the masks, which something else has changed.

        Waits for the device, and asks all ranks.
        """
        pruned = {name: (~mask).sum() for name, mask in self.masks.items()}
        counts = dict(zip(pruned, self.shards.sum(pruned).tolist(), strict=True))
        self.num_pruned = [sum(counts[name] for name in names) for names in self.groups]
