"""Which weights of a group are pruned: the lowest by a criterion, or exchanged for better ones."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from hf_cyclprune.pruning.blocks import input_last, is_input_last
from hf_cyclprune.pruning.criterion import Criterion, Rows
from hf_cyclprune.pruning.digits import CHUNK
from hf_cyclprune.pruning.patterns import Pattern
from hf_cyclprune.pruning.pruned_weights import PrunedWeights
from hf_cyclprune.pruning.second_moments import SecondMoments
from hf_cyclprune.pruning.selection import (
    HIGHEST_KEY,
    LOWEST_KEY,
    order_keys,
    prune_lowest_,
    prune_lowest_of_parts_,
)

MOST_KEPT = 1 << 27
"""Keys that an accelerator may hold during a pruning step, four bytes each: 512 MiB."""

Flags = Mapping[str, Tensor]
"""Name -> bool, shaped as the weight."""


@dataclass
class Ranking:
    """Scores the weights by a criterion, and writes masks in that order.

    Args:
        policy: the weights, their masks and the values that pruned ones would come back with.
        moments: what criteria that read the second moment are given.
        pattern: where zeros may fall.
    """

    policy: PrunedWeights
    moments: SecondMoments
    pattern: Pattern
    protected: dict[str, Tensor] = field(default_factory=dict)
    """Name -> True where a weight came back so lately that it is not pruned yet."""
    protected_until: int = 0

    def prune_(
        self,
        names: Sequence[str],
        num_pruned: int,
        criterion: Criterion,
        *,
        is_reset: bool = False,
        may_return: bool = True,
    ) -> None:
        """Write the masks of a group that prune the `num_pruned` lowest of its weights.

        Args:
            names: the group's targets.
            num_pruned: in 1 .. size of the group - 1.
            criterion: what ranks them.
            is_reset: all kept weights stay, and only pruned ones are ranked.
            may_return: whether pruned weights are ranked; if not, they come after all kept ones.
        """
        masks = self.policy.masks
        keep, only = (masks if is_reset else self.protected), (None if may_return else masks)
        self._write(masks, names, num_pruned, criterion, partial(self._keys, criterion, keep, only))

    def exchange_(
        self,
        names: Sequence[str],
        num_pruned: int,
        num_dropped: int,
        drops: Criterion,
        returns: Criterion,
    ) -> Tensor:
        """Prune the lowest kept weights of a group too, and let the best of all pruned ones return.

        Args:
            names: the group's targets.
            num_pruned: its zeros before and after.
            num_dropped: at least 1, and less than the number of kept weights.
            drops: ranks the kept weights.
            returns: ranks the pruned ones and those just dropped, which may stay if they are best.

        Returns:
            Sum of the scores by `returns` and number of the weights that came back, and the same
            for those that went.  # (4,) fp32
        """
        masks = self.policy.masks
        sparser = {name: masks[name].clone() for name in names}
        drop = partial(self._keys, drops, self.protected, masks, is_free=True)
        self._write(sparser, names, num_pruned + num_dropped, drops, drop)
        before = {name: masks[name].clone() for name in names}
        back = partial(self._keys, returns, sparser, None)
        self._write(masks, names, num_pruned, returns, back)
        gains = {}
        for name in names:  # `>` on bools is "and not"
            self.protected[name], gone = masks[name] > before[name], before[name] > masks[name]
            known = replace(self._rows(returns, name, slice(None)), kept=before[name])
            scores = returns.score(known).float()  # Apple's GPU has no double
            sums = [(scores.where(w, 0.0).sum(), w.sum()) for w in (self.protected[name], gone)]
            gains[name] = torch.stack([number.float() for pair in sums for number in pair])
        return self.policy.shards.sum(gains).sum(0)

    def expire(self, t: int) -> None:
        """Protect nothing any more if its time is over before optimizer step t."""
        if t > self.protected_until:
            self.protected.clear()

    def _write(
        self,
        masks: Flags,
        names: Sequence[str],
        num_pruned: int,
        criterion: Criterion,
        keys_of: Callable[[str, slice], Tensor],
    ) -> None:
        """Prune the lowest keys. The keys of some rows may depend on the masks of the same rows."""
        blocks = [(name, rows) for name in names for rows in self._blocks(name, criterion)]

        def score() -> Iterable[Tensor]:
            return (keys_of(name, rows) for name, rows in blocks)

        keys = list(score()).copy if self._are_kept(names) else score
        parts, shards = (masks[name][rows].view(-1) for name, rows in blocks), self.policy.shards
        if shards.ranks.is_divided:
            owners = [name for name, _ in blocks]
            prune_lowest_of_parts_(parts, keys, num_pruned, owners, shards)
        else:
            prune_lowest_(parts, keys, num_pruned)

    def _are_kept(self, names: Sequence[str]) -> bool:
        """Whether a group's keys are few enough to keep; else every pass makes them anew.

        The same on all ranks: to make the keys may take all of them.
        """
        shards = [self.policy.shards[name] for name in names]
        are_few = sum(shard.numel for shard in shards) <= MOST_KEPT
        return len(shards) == 1 or (are_few and not shards[0].weight.is_cpu)

    def _blocks(self, name: str, criterion: Criterion) -> list[slice]:
        """Split a target into the rows that are scored at a time: on a CPU they fit its cache."""
        weight = self.policy.shards[name].weight
        is_splittable = criterion.is_elementwise and self._protects_within_rows(name)
        if not (weight.is_cpu and is_splittable and len(weight)):
            return [slice(None)]
        num_rows = max(1, CHUNK // max(1, weight[0].numel()))
        return [slice(i, i + num_rows) for i in range(0, len(weight), num_rows)]

    def _keys(
        self,
        criterion: Criterion,
        keep: Flags,
        only: Flags | None,
        name: str,
        rows: slice,
        *,
        is_free: bool = False,
    ) -> Tensor:
        """Return the flat keys of some rows of a target.

        The highest possible ones are where `keep` says and, unless `is_free`, where the pattern
        never prunes; the lowest ones where `only` is False.
        """
        known = self._rows(criterion, name, rows)
        scores = criterion.score(known)
        if scores.shape != known.weight.shape:
            raise ValueError(
                f"Scores must have the shape of the weight, {tuple(known.weight.shape)}; the "
                f"criterion {type(criterion).__name__} gave {tuple(scores.shape)}. Correct it."
            )
        keys = order_keys(scores, is_signed=criterion.is_signed)
        if only is not None:
            keys = keys.masked_fill(~only[name][rows].view(-1), LOWEST_KEY)
        if name in keep:
            keys = keys.masked_fill(keep[name][rows].view(-1), HIGHEST_KEY)
        return keys if is_free else self._protect(keys, known)

    def _protect(self, keys: Tensor, rows: Rows) -> Tensor:
        """Return the keys with the highest possible one where the pattern never prunes."""
        if not self.pattern.protects_within:
            return keys
        if self._protects_within_rows(rows.name):
            return self.pattern.protect(keys, rows.weight.shape)
        shard = self.policy.shards[rows.name]
        whole = input_last(shard.parameter, shard.gather(keys).view(shard.shape))
        kept = self.pattern.protect(whole.reshape(-1), whole.shape).view(whole.shape)
        return shard.part_of(input_last(shard.parameter, kept)).reshape(-1)

    def _protects_within_rows(self, name: str) -> bool:
        """Whether the pattern may be given a few of the rows that are held here at a time."""
        shard = self.policy.shards[name]
        if self.pattern.protects_within == "row":
            return shard.has_whole_rows and is_input_last(shard.parameter)
        return not self.pattern.protects_within

    def _rows(self, criterion: Criterion, name: str, rows: slice) -> Rows:
        """Return what the criterion may know of some rows of a target."""
        shard = self.policy.shards[name]
        weight, kept = shard.weight[rows], self.policy.masks[name][rows]
        gradient = self._gradient(name)[rows] if "gradient" in criterion.reads else None
        reads_moment = "second_moment" in criterion.reads
        moment = self.moments.of(name, rows) if reads_moment else None
        return Rows(name, weight, kept, gradient, moment, rows, shard)

    def _gradient(self, name: str) -> Tensor:
        gradient = self.policy.shards[name].gradient
        if gradient is None:
            raise ValueError(
                f"The criterion needs a gradient of every target weight, but '{name}' has none. "
                "Use criterion='magnitude', or leave this weight out with ignore=."
            )
        return gradient
