"""What a run sees at every optimizer step, for the criteria that average over steps."""

from collections.abc import Iterable, Sequence
from functools import cached_property

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from hf_cyclprune.pruning.activations import hook_inputs
from hf_cyclprune.pruning.criterion import Criterion
from hf_cyclprune.pruning.loss_scaling import unscale_, will_be_skipped
from hf_cyclprune.pruning.pruned_weights import PrunedWeights
from hf_cyclprune.pruning.second_moments import SecondMoments, finite
from hf_cyclprune.pruning.targets import find_layers

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
        self.moments = SecondMoments(policy.shards, optimizer)
        self._hooks: list[RemovableHandle] = []
        self._is_blank = False
        """Whether all steps so far were skipped, so that there is nothing to score by."""
        for criterion in criteria:
            criterion.attach(policy.shards.wholes)

    @property
    def reads(self) -> frozenset[str]:
        """What the criteria read now besides the weights."""
        return frozenset().union(*(criterion.reads for criterion in self._criteria))

    @cached_property
    def _observers(self) -> list[Criterion]:
        return [criterion for criterion in self._criteria if criterion.observes]

    def observe(self, names: Iterable[str]) -> None:
        """Look at the gradients of these targets in the step that is about to be taken, if it is.

        A step that a scaler skips tells nothing.
        """
        if not (self.reads or self._observers):
            return
        unscale_(self.moments.optimizer)
        if will_be_skipped(self.moments.optimizer):
            is_known = self.moments.is_known or any(c.memory for c in self._observers)
            self._is_blank = not is_known
            return
        self._is_blank = False
        for name in names:
            shard = self._policy.shards[name]
            if shard.gradient is None:
                continue
            if "gradient" in self.reads:
                shard.hold_gradient()
            if "second_moment" in self.reads:
                self.moments.observe(name, shard.gradient)
            if self._observers:
                value, gradient = self._policy.value(name), finite(shard.gradient)
                for criterion in self._observers:
                    criterion.observe(name, value, gradient)

    @property
    def looks_at_inputs(self) -> bool:
        """Whether a criterion must see the inputs of the layers."""
        return any(criterion.looks_at_inputs for criterion in self._criteria)

    @property
    def keeps_memory(self) -> bool:
        """Whether a criterion remembers what it saw."""
        return self.looks_at_inputs or bool(self._observers)

    def observe_input(self, name: str, inputs: Tensor) -> None:
        """Show the inputs of a target's layer to the criteria."""
        for criterion in self._criteria:
            criterion.observe_input(name, inputs)

    def watch(self, model: nn.Module) -> None:
        """Look at the inputs of the targets' layers in training, if a criterion needs them.

        Raises:
            ValueError: a criterion needs them, and a target is not of a Linear layer.
        """
        self.unwatch()
        if self.looks_at_inputs:
            layers = find_layers(model, self._policy.shards)
            self._hooks = hook_inputs(layers, self.observe_input)

    def unwatch(self) -> None:
        """Remove the hooks of `watch` from the model."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def is_warm(self, t: int, total_steps: int) -> bool:
        """Whether enough steps were seen before step t is over for averages to mean something."""
        waits = any(criterion.is_statistic for criterion in self._criteria)
        return not waits or (t > min(WARM_STEPS, total_steps // 20) and not self._is_blank)
