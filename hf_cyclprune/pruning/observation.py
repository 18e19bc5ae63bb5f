"""What a run sees at every optimizer step, for the criteria that average over steps."""

from collections.abc import Sequence
from functools import cached_property

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from hf_cyclprune.pruning.activations import hook_inputs
from hf_cyclprune.pruning.criterion import Criterion
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
        self.moments = SecondMoments(policy.targets, optimizer)
        self._hooks: list[RemovableHandle] = []
        for criterion in criteria:
            criterion.attach(policy.targets)

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
            ValueError: a criterion needs them, and a target is of an Embedding.
        """
        self.unwatch()
        if self.looks_at_inputs:
            layers = find_layers(model, self._policy.targets)
            self._hooks = hook_inputs(layers, self.observe_input)

    def unwatch(self) -> None:
        """Remove the hooks of `watch` from the model."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def is_warm(self, t: int, total_steps: int) -> bool:
        """Whether enough steps were seen before step t is over for averages to mean something."""
        waits = any(criterion.is_statistic for criterion in self._criteria)
        return not waits or t > min(WARM_STEPS, total_steps // 20)
