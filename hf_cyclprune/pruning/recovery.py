"""How pruned weights come back: with which value, and by an exchange or in the ranking."""

from dataclasses import dataclass
from math import cos, pi

from hf_cyclprune.pruning.criterion import Criterion
from hf_cyclprune.pruning.pruned_weights import PrunedWeights
from hf_cyclprune.pruning.schedules import Schedule

REGROWTH_AT = ("steps", "edges", "until_last_edge")
"""When pruned weights may return: at every pruning step, where cycles begin, or at every pruning
step until the last cycle has begun."""


@dataclass(frozen=True)
class Regrowth:
    """An exchange at a fixed sparsity: some kept weights are pruned, and as many return.

    At step t a share of the kept weights of each group is dropped, the lowest by the pruner's
    criterion: ratio (1 + cos(pi (t - 1) / (until T))) / 2, which falls to 0 (Evci et al. 2020,
    RigL, https://arxiv.org/abs/1911.11134, section 3). Those with the highest scores return. With
    it, pruned weights return in no other way, unless sparsity falls.

    Args:
        criterion: scores the pruned weights, and those just dropped.
        ratio: alpha in [0, 1), the share of the kept weights exchanged at the start.
        until: in [0, 1]; the share of the run after which the masks stay.
        protect_ratio: in [0, 1]; the share of a cycle in which a returned weight is not pruned.
    """

    criterion: Criterion
    ratio: float = 0.3
    until: float = 0.75
    protect_ratio: float = 0.0

    def share(self, t: int, schedule: Schedule) -> float:
        """The share of the kept weights that is exchanged at pruning step t, if any may return."""
        x = (t - 1) / (self.until * schedule.total_steps) if self.until else 1.0
        return self.ratio * (1.0 + cos(pi * x)) / 2.0 if x < 1.0 else 0.0

    def protected_steps(self, t: int, schedule: Schedule) -> int:
        """Steps after t in which what returned at t is not pruned."""
        return round(self.protect_ratio * schedule.cycle_length(schedule.cycle(t)))


@dataclass(frozen=True)
class Recovery:
    """What a pruned weight is meanwhile, and how it comes back; the default is the paper's.

    Args:
        policy: a class of `PRUNED_WEIGHTS`.
        decay: in [0, 1]; the coefficient of "latent" or "decay".
        flow_ratio: in [0, 1]; the share of a cycle in which values of "latent" and "decay" change.
        regrowth: how weights return while sparsity does not fall; None: in a ranking with others.
        resets_momentum: whether a weight that comes back begins at rest (see `momentum`).
        returns_at: one of `REGROWTH_AT`: when weights may return so. In a ranking with others they
            do not at an edge alone. Where sparsity falls they always return.
    """

    policy: type[PrunedWeights] = PrunedWeights
    decay: float = 0.0
    flow_ratio: float = 1.0
    regrowth: Regrowth | None = None
    resets_momentum: bool = False
    returns_at: str = "steps"

    def may_exchange(self, t: int, schedule: Schedule) -> bool:
        """Whether pruning step t may let weights return by regrowth."""
        if self.returns_at == "edges":
            return t - 1 in schedule.edges[1:-1]
        return self.returns_at == "steps" or t - 1 <= schedule.edges[-2]

    def ranks_pruned(self, t: int, schedule: Schedule) -> bool:
        """Whether pruning step t ranks pruned weights with the others though sparsity may rise."""
        is_between = self.regrowth is None and self.returns_at != "edges"
        return is_between and self.may_exchange(t, schedule)

    def is_flowing(self, t: int, schedule: Schedule) -> bool:
        """Whether values may change in optimizer step t."""
        cycle = schedule.cycle(t)
        return t - 1 - schedule.edges[cycle] < self.flow_ratio * schedule.cycle_length(cycle)

    def position(self, t: int, schedule: Schedule) -> float:
        """How much of the time in which values may change is over after step t, in (0, 1]."""
        cycle = schedule.cycle(t)
        length = self.flow_ratio * schedule.cycle_length(cycle)
        return min(1.0, (t - schedule.edges[cycle]) / length) if length else 1.0
