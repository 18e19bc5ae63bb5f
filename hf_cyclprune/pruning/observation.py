"""What a run sees at every optimizer step, for the criteria that average over steps."""

from collections.abc import Sequence
from functools import cached_property

from torch.optim import Optimizer

from hf_cyclprune.pruning.criterion import Criterion
from hf_cyclprune.pruning.pruned_weights import PrunedWeights
from hf_cyclprune.pruning.second_moments import SecondMoments, finite

WARM_STEPS = 50  # optimizer steps before averages are used, at most 1/20 of the run


class Observation:
    """Shows the gradients of every step to the criteria that observe them.

    Args:
        policy: the weights, and the values of the pruned ones.
        criteria: all that score weights in this run.
        optimizer: of the weights; None where it is not known.
    """

    def __init__(
        self, policy: PrunedWeights, criteria: Sequence[Criterion], optimizer: Optimizer | None
    ) -> None:
        self._policy, self._criteria = policy, criteria
        self.moments = SecondMoments(policy.targets, optimizer)

    @property
    def reads(self) -> frozenset[str]:
        """What the criteria read now besides the weights."""
        return frozenset().union(*(criterion.reads for criterion in self._criteria))

    @cached_property
    def _observers(self) -> list[Criterion]:
        return [criterion for criterion in self._criteria if criterion.observes]

    def observe(self) -> None:
        """Look at the gradients of the step that is about to be taken."""
        reads_moment = "second_moment" in self.reads
        for name, weight in self._policy.targets.items() if reads_moment or self._observers else ():
            if weight.grad is None:
                continue
            if reads_moment:
                self.moments.observe(name, weight.grad)
            if self._observers:
                value, gradient = self._policy.value(name), finite(weight.grad)
                for criterion in self._observers:
                    criterion.observe(name, value, gradient)

    def is_warm(self, t: int, total_steps: int) -> bool:
        """Whether enough steps were seen before step t is over for averages to mean something."""
        waits = any(criterion.is_statistic for criterion in self._criteria)
        return not waits or t > min(WARM_STEPS, total_steps // 20)
