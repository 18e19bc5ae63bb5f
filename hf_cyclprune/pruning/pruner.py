"""One optimizer step of pruning: where schedule, criterion, pattern and targets meet.

Projected gradient descent with a sparsity that varies in time (Srinivas et al. 2022,
https://arxiv.org/abs/2202.01290, algorithm 1). After every optimizer step t

    M <- mask of the current weights at sparsity s(t)     if t is a pruning step
    w <- w * M

so that a pruned weight, which the optimizer has just moved away from zero, competes with the
others by what that one update made of it. `Recovery` says how else it may come back.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

from hf_cyclprune.pruning.blocks import input_last
from hf_cyclprune.pruning.criterion import Criterion
from hf_cyclprune.pruning.observation import Observation
from hf_cyclprune.pruning.patterns import Pattern
from hf_cyclprune.pruning.pruning_step import PruningStep
from hf_cyclprune.pruning.ranking import Ranking
from hf_cyclprune.pruning.readiness import are_ready
from hf_cyclprune.pruning.recovery import Recovery
from hf_cyclprune.pruning.schedules import Schedule


@dataclass
class Pruner:
    """Masks of the targets, recomputed by `schedule` and applied after every optimizer step.

    A **reset** is a pruning step that lowers the number of pruned weights of a group. It only frees
    weights: all kept ones stay, and of the pruned ones those with the highest scores return. Where
    they return from zero, a reset waits until the optimizer has moved a pruned weight of the group.
    After a step with a learning rate of 0, or one skipped for an overflow, all pruned weights are
    still zero, and they would return in the order of their index. A late reset uses the sparsity of
    its own step. With a criterion that reads gradients every pruning step waits for finite ones in
    this way, and with one that averages over steps, for the first steps of the run.

    If the schedule never recomputes masks, the zeros of the weights are the masks.

    A loop of your own calls, around every optimizer step t = 1, 2, 3,

        pruner.begin_step(t)     # before the forward pass, for pruned_weights="decay"
        pruner.before_update(t)  # before optimizer.step(), for all but the simplest methods
        pruner.step(t)           # after it

    Args:
        targets: name -> weight, pruned in place.
        schedule: optimizer step -> sparsity.
        criterion: weight -> scores.
        pattern: scores -> masks.
        recovery: what a pruned weight is meanwhile, and how it comes back.
        optimizer: moves the weights; its second moments are read if a criterion needs them.

    Raises:
        ValueError: n:m does not fit a weight; there are no zeros to keep.
    """

    targets: Mapping[str, Tensor]
    schedule: Schedule
    criterion: Criterion
    pattern: Pattern
    recovery: Recovery = Recovery()
    optimizer: Optimizer | None = None
    masks: dict[str, Tensor] = field(init=False)
    """Name -> bool, shaped as the weight, True = kept."""
    num_pruned: list[int] = field(init=False)
    """Pruned weights of each group, by `masks`."""
    pending: set[int] = field(init=False, default_factory=set)
    """Groups whose pruning step is due but waits."""
    num_returned: Tensor = field(init=False)
    """How often a pruned weight came back so far; int64, on the device of the weights."""

    def __post_init__(self) -> None:
        self.shapes = {name: tuple(weight.shape) for name, weight in self.targets.items()}
        self.pattern.check(
            {name: input_last(weight).shape for name, weight in self.targets.items()}
        )
        self.groups = self.pattern.groups(self.shapes)
        self.masks = {
            name: torch.ones_like(weight, dtype=torch.bool, memory_format=torch.contiguous_format)
            for name, weight in self.targets.items()
        }
        self.num_pruned = [0] * len(self.groups)
        self.num_returned = next(iter(self.masks.values())).new_zeros((), dtype=torch.int64)
        if self.schedule.keeps_zeros:
            self.take_zeros()
            if not any(self.num_pruned):
                raise ValueError(
                    "The model has no zeros to keep in its target weights. Load a pruned model, or "
                    "choose a method that prunes and a sparsity."
                )
        self.policy = self.recovery.policy(self.targets, self.masks, self.recovery.decay)
        self.policy.start()
        regrowth = self.recovery.regrowth
        criteria = [self.criterion, *([regrowth.criterion] if regrowth is not None else [])]
        self.observation = Observation(self.policy, criteria, self.optimizer)
        self.ranking = Ranking(self.policy, self.observation.moments, self.pattern)

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
    def begin_step(self, t: int) -> None:
        """Prepare the forward pass of optimizer step t."""
        if self.policy.opens_before == "forward" and self.recovery.is_flowing(t, self.schedule):
            self.policy.open_()

    @torch.no_grad()
    def before_update(self, t: int) -> None:
        """Observe the gradients of optimizer step t, clipped and unscaled, before it is taken."""
        if self.policy.opens_before == "update" and self.recovery.is_flowing(t, self.schedule):
            self.policy.open_()
        self.observation.observe()
        if self.policy.is_open:
            self.policy.before_update()

    @torch.no_grad()
    def step(self, t: int) -> PruningStep:
        """Recompute the masks if they are due after optimizer step t = 1, 2, 3, and apply them.

        A second call for the same step changes nothing if a weight of 0 scores lowest. If no
        masks are due, this is one pass over the weights that does not wait for the device.
        """
        due = set(range(len(self.groups))) if self.schedule.is_pruning_step(t) else self.pending
        done = PruningStep()
        if due:
            self.policy.open_()
            done = self._prune(due, t)
        self.policy.close_(self.recovery.position(t, self.schedule))
        return done

    @torch.no_grad()
    def apply_masks_(self) -> None:
        """Set every pruned weight to +0.0 in place, even one that holds NaN or infinity.

        Values that were put back for a step that is not going to be taken are kept for the next.
        """
        self.policy.close_(0.0)

    @torch.no_grad()
    def prune_to(self, sparsity: float) -> None:
        """Compute masks at this sparsity and apply them, for pruning without training."""
        for g, n in enumerate(self.demand(sparsity)):
            self._recompute(g, n)
        self.policy.mask_()

    def _prune(self, due: Iterable[int], t: int) -> PruningStep:
        self.criterion.begin_cycle(self.schedule.cycle(t))
        self.ranking.expire(t)
        demand = self.demand(self.schedule.sparsity_at(t))
        is_ready = dict.fromkeys(due, False)
        if self.observation.is_warm(t, self.schedule.total_steps):
            masks = {g: {name: self.masks[name] for name in self.groups[g]} for g in due}
            resets = {g for g in due if demand[g] < self.num_pruned[g]}
            is_ready = are_ready(self.targets, masks, resets, self.observation.reads)
        self.pending = {g for g in due if not is_ready[g]}
        ready = {g: demand[g] for g in due if is_ready[g]}
        # Totals are compared: with erk one group's count can fall by one while the total grows.
        is_reset = sum(ready.values()) < sum(self.num_pruned[g] for g in ready)
        before = {name: self.masks[name].clone() for g in ready for name in self.groups[g]}
        for g, n in ready.items():
            self._recompute(g, n)
        exchanged = self._exchange(ready, t)
        for name, mask in before.items():  # `>` on bools is "and not"
            self.num_returned += (self.masks[name] > mask).sum()
        is_reset |= bool(exchanged)
        return PruningStep(len(ready), is_reset, *exchanged)

    def _exchange(self, ready: Mapping[int, int], t: int) -> Sequence[float]:
        """Let weights return by the regrowth's criterion; at an edge, return benefit and cost."""
        regrowth = self.recovery.regrowth
        share = regrowth.share(t, self.schedule) if regrowth is not None else 0.0
        if regrowth is None or not share:
            return ()
        regrowth.criterion.begin_cycle(t)  # one that draws numbers draws them anew in every step
        self.ranking.protected_until = t + regrowth.protected_steps(t, self.schedule)
        gains = [self.num_returned.new_zeros(4, dtype=torch.float64)]
        for g, n in ready.items():
            num_kept = self._size(g) - n
            num_dropped = min(int(share * num_kept), num_kept - 1)
            if num_dropped > 0 and n:
                drops, returns = self.criterion, regrowth.criterion
                gains.append(self.ranking.exchange_(self.groups[g], n, num_dropped, drops, returns))
        regrowth.criterion.forget()
        if not (regrowth.only_at_edges and ready):
            return ()
        benefit, num_back, cost, num_gone = torch.stack(gains).sum(0).tolist()
        return benefit / max(num_back, 1), cost / max(num_gone, 1)

    def _recompute(self, group: int, num_pruned: int) -> None:
        """Make new masks for a group, which prune its lowest weights."""
        names, before = self.groups[group], self.num_pruned[group]
        self.num_pruned[group] = num_pruned
        if num_pruned in (0, self._size(group)):
            for name in names:
                self.masks[name].fill_(num_pruned == 0)
            return
        is_reset, criterion = num_pruned < before, self.criterion
        if self.recovery.regrowth is not None and is_reset:
            criterion = self.recovery.regrowth.criterion
        may_return = is_reset or self.recovery.regrowth is None
        self.ranking.prune_(names, num_pruned, criterion, is_reset=is_reset, may_return=may_return)

    def _size(self, group: int) -> int:
        return sum(self.targets[name].numel() for name in self.groups[group])
