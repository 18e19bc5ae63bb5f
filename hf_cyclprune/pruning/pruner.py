"""One pruning step: the only place where schedule, criterion, pattern and targets meet.

Projected gradient descent with a sparsity that varies in time (Srinivas et al. 2022,
https://arxiv.org/abs/2202.01290, algorithm 1). After every optimizer step t

    M <- mask of the current weights at sparsity s(t)     if t is a pruning step
    w <- w * M

so that a pruned weight, which the optimizer has just moved away from zero, competes with the
others by what that one update made of it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hf_cyclprune.pruning.criteria import Criterion
from hf_cyclprune.pruning.patterns import Pattern
from hf_cyclprune.pruning.schedules import Schedule
from hf_cyclprune.pruning.selection import CHUNK, HIGHEST_KEY, order_keys, prune_lowest_

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class PruningStep:
    """The outcome of `Pruner.step`: how many groups got new masks, and whether it was a reset."""

    num_recomputed: int = 0
    is_reset: bool = False


@dataclass
class Pruner:
    """Masks of the targets, recomputed by `schedule` and applied after every optimizer step.

    A **reset** is a pruning step that lowers the number of pruned weights of a group. It only frees
    weights: all kept ones stay, and of the pruned ones those with the highest scores return. A
    reset waits until the optimizer has moved a pruned weight of the group. After a step with a
    learning rate of 0, or one skipped for an overflow, all pruned weights are still zero, and they
    would return in the order of their index. A late reset uses the sparsity of its own step.

    With a criterion that reads gradients, every pruning step waits for finite ones in this way.

    If the schedule never recomputes masks, the zeros of the weights are the masks.

    Args:
        targets: name -> weight, pruned in place.
        schedule: optimizer step -> sparsity.
        criterion: weight -> scores.
        pattern: scores -> masks.

    Raises:
        ValueError: n:m does not fit a weight; there are no zeros to keep.
    """

    targets: Mapping[str, Tensor]
    schedule: Schedule
    criterion: Criterion
    pattern: Pattern
    masks: dict[str, Tensor] = field(init=False)
    """Name -> bool, shaped as the weight, True = kept."""
    num_pruned: list[int] = field(init=False)
    """Pruned weights of each group, by `masks`."""
    pending: set[int] = field(init=False, default_factory=set)
    """Groups whose pruning step is due but waits."""

    def __post_init__(self) -> None:
        self.shapes = {name: tuple(weight.shape) for name, weight in self.targets.items()}
        self.pattern.check(self.shapes)
        self.groups = self.pattern.groups(self.shapes)
        self.masks = {
            name: torch.ones_like(weight, dtype=torch.bool, memory_format=torch.contiguous_format)
            for name, weight in self.targets.items()
        }
        self.num_pruned = [0] * len(self.groups)
        if self.schedule.keeps_zeros:
            self.take_zeros()
            if not any(self.num_pruned):
                raise ValueError(
                    "The model has no zeros to keep in its target weights. Load a pruned model, or "
                    "choose a method that prunes and a sparsity."
                )

    @property
    def num_weights(self) -> int:
        """Target weights, pruned or not."""
        return sum(weight.numel() for weight in self.targets.values())

    @property
    def sparsity(self) -> float:
        """Pruned share of the target weights, by the masks."""
        return sum(self.num_pruned) / self.num_weights

    @property
    def is_at_target(self) -> bool:
        """Whether every group has as many zeros as the schedule's target asks for.

        A schedule that never recomputes asks for nothing but the zeros that were there.
        """
        is_there = not self.pending and self.num_pruned == self.demand(self.schedule.sparsity)
        return self.schedule.keeps_zeros or is_there

    def demand(self, sparsity: float) -> list[int]:
        """Pruned weights of each group at this sparsity."""
        return self.pattern.num_pruned(self.shapes, sparsity)

    def take_zeros(self) -> None:
        """Make the zeros that the weights have now the masks."""
        for name, weight in self.targets.items():
            self.masks[name].copy_(weight.detach() != 0)
        self.count_pruned()

    def count_pruned(self) -> None:
        """Set `num_pruned` to what is pruned in the masks, which something else has changed."""
        self.num_pruned = [
            sum(self.masks[name].numel() - int(self.masks[name].sum()) for name in names)
            for names in self.groups
        ]

    @torch.no_grad()
    def step(self, t: int) -> PruningStep:
        """Recompute the masks if they are due after optimizer step t = 1, 2, 3, and apply them.

        A second call for the same step changes nothing if a weight of 0 scores lowest. If no
        masks are due, this is one pass over the weights that does not wait for the device.
        """
        due = set(range(len(self.groups))) if self.schedule.is_pruning_step(t) else self.pending
        done = self._prune(due, t) if due else PruningStep()
        self.apply_masks_()
        return done

    @torch.no_grad()
    def apply_masks_(self) -> None:
        """Set every pruned weight to +0.0 in place, even one that holds NaN or infinity."""
        for name, weight in self.targets.items():
            # Bits times 0 or 1: `weight * mask` would leave -0.0 and NaN behind.
            weight.detach().view(_BITS[weight.element_size()]).mul_(self.masks[name])

    @torch.no_grad()
    def find_unmasked(self) -> str | None:
        """The first target with a pruned weight that is not +0.0; None if there is none."""
        for name, weight in self.targets.items():
            bits = weight.detach().view(_BITS[weight.element_size()])
            if bool((bits * ~self.masks[name]).any()):
                return name
        return None

    def prune_to(self, sparsity: float) -> None:
        """Compute masks at this sparsity and apply them, for pruning without training."""
        with torch.no_grad():
            self._recompute(dict(enumerate(self.demand(sparsity))))
            self.apply_masks_()

    def _prune(self, due: Iterable[int], t: int) -> PruningStep:
        self.criterion.begin_cycle(self.schedule.cycle(t))
        demand = self.demand(self.schedule.sparsity_at(t))
        is_ready = self._are_ready(due, demand)
        self.pending = {g for g in due if not is_ready[g]}
        ready = {g: demand[g] for g in due if is_ready[g]}
        # Totals are compared: with erk one group's count can fall by one while the total grows.
        is_reset = sum(ready.values()) < sum(self.num_pruned[g] for g in ready)
        self._recompute(ready)
        return PruningStep(len(ready), is_reset)

    def _are_ready(self, due: Iterable[int], demand: list[int]) -> dict[int, bool]:
        """Whether each due group can be pruned now; waits for the device once at most."""
        checks = {g: self._checks(g, is_reset=demand[g] < self.num_pruned[g]) for g in due}
        asked = [g for g, check in checks.items() if check is not None]
        answers = torch.stack([c for c in checks.values() if c is not None]) if asked else None
        ready = dict.fromkeys(checks, True)
        if answers is not None:
            ready.update(zip(asked, answers.tolist(), strict=True))
        return ready

    def _checks(self, group: int, *, is_reset: bool) -> Tensor | None:
        """A bool on the device that allows to prune this group now; None if nothing forbids it."""
        weights = {name: self.targets[name] for name in self.groups[group]}
        conditions = []
        if is_reset:  # some pruned weight has moved; `>` on bools is "and not"
            moved = [((w != 0) > self.masks[name]).any() for name, w in weights.items()]
            conditions.append(torch.stack(moved).any())
        if self.criterion.needs_gradient:
            gradients = [w.grad for w in weights.values() if w.grad is not None]
            conditions += [gradient.isfinite().all() for gradient in gradients]
        return torch.stack(conditions).all() if conditions else None

    def _recompute(self, demand: Mapping[int, int]) -> None:
        """Make new masks for some groups, which prune the lowest `demand[group]` keys of each."""
        for g, n in demand.items():
            if n in (0, self._size(g)):
                for name in self.groups[g]:
                    self.masks[name].fill_(n == 0)
            else:
                self._recompute_group(g, n)
            self.num_pruned[g] = n

    def _recompute_group(self, group: int, num_pruned: int) -> None:
        is_reset = num_pruned < self.num_pruned[group]
        names = self.groups[group]
        blocks = [(name, rows) for name in names for rows in self._blocks(name)]

        def score() -> Iterable[Tensor]:
            return (self._keys(name, rows, is_reset) for name, rows in blocks)

        # The keys of one target are small enough to keep; those of several are made anew.
        keys = score if len(names) > 1 else list(score()).copy
        masks = (self.masks[name][rows].view(-1) for name, rows in blocks)
        prune_lowest_(masks, keys, num_pruned)

    def _blocks(self, name: str) -> list[slice]:
        """Split a target into the rows that are scored at a time: on a CPU they fit its cache."""
        weight = self.targets[name]
        if not (weight.is_cpu and self.criterion.is_elementwise):
            return [slice(None)]
        num_rows = max(1, CHUNK // max(1, weight[0].numel()))
        return [slice(i, i + num_rows) for i in range(0, len(weight), num_rows)]

    def _keys(self, name: str, rows: slice, is_reset: bool) -> Tensor:
        """Return the flat keys of some rows of a target, the highest where none may be pruned."""
        weight = self.targets[name]
        block = weight.detach()[rows]
        gradient = self._gradient(name)[rows] if self.criterion.needs_gradient else None
        scores = self.criterion.score(name, block, gradient)
        keys = order_keys(scores, is_signed=self.criterion.is_signed)
        if is_reset:
            keys = keys.masked_fill(self.masks[name][rows].view(-1), HIGHEST_KEY)
        return self.pattern.protect(keys, block.shape)

    def _gradient(self, name: str) -> Tensor:
        gradient = self.targets[name].grad
        if gradient is None:
            raise ValueError(
                f"The criterion needs a gradient of every target weight, but '{name}' has none. "
                "Use criterion='magnitude', or leave this weight out with ignore=."
            )
        return gradient

    def _size(self, group: int) -> int:
        return sum(self.targets[name].numel() for name in self.groups[group])
