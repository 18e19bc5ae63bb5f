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

from hf_cyclprune.engines.ranks import check_same
from hf_cyclprune.engines.zero import around_step
from hf_cyclprune.pruning.criterion import Criterion
from hf_cyclprune.pruning.exchange import exchange_groups_
from hf_cyclprune.pruning.loss_scaling import unscale_
from hf_cyclprune.pruning.masked_weights import MaskedWeights
from hf_cyclprune.pruning.momentum import reset_momentum_
from hf_cyclprune.pruning.observation import Observation
from hf_cyclprune.pruning.patterns import Pattern
from hf_cyclprune.pruning.pruning_step import PruningStep
from hf_cyclprune.pruning.ranking import Ranking
from hf_cyclprune.pruning.readiness import are_ready
from hf_cyclprune.pruning.recovery import Recovery
from hf_cyclprune.pruning.schedules import Schedule


@dataclass
class Pruner(MaskedWeights):
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
    pending: set[int] = field(init=False, default_factory=set)
    """Groups whose pruning step is due but waits."""
    num_returned: Tensor = field(init=False)
    """How often a pruned weight came back so far; int64, on the device of the weights."""

    def __post_init__(self) -> None:
        self.lay_out()
        if self.schedule.keeps_zeros:
            self.take_zeros()
            if not any(self.num_pruned):
                raise ValueError(
                    "The model has no zeros to keep in its target weights. Load a pruned model, or "
                    "choose a method that prunes and a sparsity."
                )
        self.policy = self.recovery.policy(self.shards, self.masks, self.recovery.decay)
        self.policy.start()
        regrowth = self.recovery.regrowth
        criteria = [self.criterion, *([regrowth.criterion] if regrowth is not None else [])]
        self.observation = Observation(self.policy, criteria, self.optimizer)
        self.ranking = Ranking(self.policy, self.observation.moments, self.pattern)
        self._hooks = around_step(self.shards, self.optimizer, self._within_step)
        self._t, self._done = 0, (0, PruningStep())

    def _within_step(self, names: Iterable[str] | None) -> None:
        """Prune inside of an engine's step; names are None after it."""
        if names is None:
            self._done = self._t, self._step(self._t)
        else:
            self._before_update(self._t, names)

    def release(self) -> None:
        """Take back what the pruner has hung on the model and its optimizer."""
        self.observation.unwatch()
        for hook in self._hooks:
            hook.remove()

    @property
    def is_at_target(self) -> bool:
        """Whether every group has as many zeros as the schedule's target asks for.

        A schedule that never recomputes asks for nothing but the zeros that were there.
        """
        is_there = not self.pending and self.num_pruned == self.demand(self.schedule.sparsity)
        return self.schedule.keeps_zeros or is_there

    @torch.no_grad()
    def begin_step(self, t: int) -> None:
        """Prepare the forward pass of optimizer step t."""
        self._t = t
        if self.policy.opens_before == "forward" and self.recovery.is_flowing(t, self.schedule):
            self.policy.open_()
            self.shards.spread_()

    def before_update(self, t: int) -> None:
        """Observe the gradients of optimizer step t, clipped and unscaled, before it is taken."""
        if not self._hooks:
            self._before_update(t, self.shards)

    @torch.no_grad()
    def _before_update(self, t: int, names: Iterable[str]) -> None:
        """Do it for these targets, whose gradients are there."""
        if self.policy.opens_before == "update" and self.recovery.is_flowing(t, self.schedule):
            self.policy.open_()
        self.observation.observe(names)
        if self.policy.is_open:
            unscale_(self.optimizer)
            self.policy.before_update(names)

    def step(self, t: int) -> PruningStep:
        """Recompute the masks if they are due after optimizer step t = 1, 2, 3, and apply them.

        A second call for the same step changes nothing if a weight of 0 scores lowest. If no
        masks are due, this is one pass over the weights that does not wait for the device.

        Raises:
            ValueError: processes that train copies of the model have come to different masks.
        """
        if self._hooks and self._done[0] == t:
            return self._done[1]
        done = self._step(t)
        if self._hooks:  # the engine has skipped the step
            self.shards.spread_()
        return done

    @torch.no_grad()
    def _step(self, t: int) -> PruningStep:
        due = set(range(len(self.groups))) if self.schedule.is_pruning_step(t) else self.pending
        done = PruningStep()
        if due:
            self.policy.open_()
            done = self._prune(due, t)
        self.policy.close_(self.recovery.position(t, self.schedule))
        self.shards.publish_()
        if done.num_recomputed and not self.shards.ranks.is_divided:
            check_same(self.masks)
        return done

    @torch.no_grad()
    def apply_masks_(self) -> None:
        """Set every pruned weight to +0.0 in place, even one that holds NaN or infinity.

        Values that were put back for a step that is not going to be taken are kept for the next.
        """
        self.policy.close_(0.0)
        self.shards.spread_()

    @torch.no_grad()
    def prune_to(self, sparsity: float) -> None:
        """Compute masks at this sparsity and apply them, for pruning without training."""
        for g, n in enumerate(self.demand(sparsity)):
            self._recompute(g, n)
        self.policy.mask_()
        self.shards.spread_()

    def _prune(self, due: Iterable[int], t: int) -> PruningStep:
        self.criterion.begin_cycle(self.schedule.cycle(t))
        self.ranking.expire(t)
        demand = self.demand(self.schedule.sparsity_at(t))
        is_ready = dict.fromkeys(due, False)
        if self.observation.is_warm(t, self.schedule.total_steps):
            masks = {g: {name: self.masks[name] for name in self.groups[g]} for g in due}
            resets = {g for g in due if demand[g] < self.num_pruned[g]}
            is_ready = are_ready(self.shards, masks, resets, self.observation.reads)
        self.pending = {g for g in due if not is_ready[g]}
        ready = {g: demand[g] for g in due if is_ready[g]}
        # Totals are compared: with erk one group's count can fall by one while the total grows.
        is_reset = sum(ready.values()) < sum(self.num_pruned[g] for g in ready)
        before = {name: self.masks[name].clone() for g in ready for name in self.groups[g]}
        may_return = self.recovery.ranks_pruned(t, self.schedule)
        for g, n in ready.items():
            self._recompute(g, n, may_return=may_return)
        exchanged = self._exchange(ready, t)
        if before:  # `>` on bools is "and not"
            returned = {name: self.masks[name] > mask for name, mask in before.items()}
            self.num_returned += self.shards.sum({n: r.sum() for n, r in returned.items()}).sum()
            if self.recovery.resets_momentum:
                reset_momentum_(self.shards, returned, self.optimizer)
        is_reset |= bool(exchanged)
        return PruningStep(len(ready), is_reset, *exchanged)

    def _exchange(self, ready: Mapping[int, int], t: int) -> Sequence[float]:
        """Let weights return by the regrowth's criterion; at an edge, return benefit and cost."""
        regrowth = self.recovery.regrowth
        if regrowth is None or not self.recovery.may_exchange(t, self.schedule):
            return ()
        share = regrowth.share(t, self.schedule)
        if not share:
            return ()
        regrowth.criterion.begin_cycle(t)  # one that draws numbers draws them anew in every step
        self.ranking.protected_until = t + regrowth.protected_steps(t, self.schedule)
        groups = {self.groups[g]: n for g, n in ready.items()}
        gains = exchange_groups_(self.ranking, groups, share, self.criterion, regrowth.criterion)
        regrowth.criterion.forget()
        if not (self.recovery.returns_at == "edges" and ready):
            return ()
        benefit, num_back, cost, num_gone = gains.tolist()
        return benefit / max(num_back, 1), cost / max(num_gone, 1)

    def _recompute(self, group: int, num_pruned: int, *, may_return: bool = True) -> None:
        """Make new masks for a group, which prune its lowest weights."""
        names, before = self.groups[group], self.num_pruned[group]
        self.num_pruned[group] = num_pruned
        if num_pruned in (0, self.size(group)):
            for name in names:
                self.masks[name].fill_(num_pruned == 0)
            return
        is_reset, criterion = num_pruned < before, self.criterion
        if self.recovery.regrowth is not None and is_reset:
            criterion = self.recovery.regrowth.criterion
        may_return |= is_reset
        self.ranking.prune_(names, num_pruned, criterion, is_reset=is_reset, may_return=may_return)
