"""The momentum of weights that come back, which is that of the time when they were pruned.

The optimizer goes on with a pruned weight's gradient, so a weight that comes back moves at once in
the mean direction of the steps in which it was zero. RigL starts it at rest instead (Evci et al.
2020, https://arxiv.org/abs/1911.11134, in its published code).

Adam's second moment is kept: it measures how large the gradient is, also while the weight is
pruned. Set to 0 at a step number that is not, it would be 0.001 g^2 without a correction after the
next step, which would then be 0.1 / sqrt(0.001), about three times, as long as the learning rate.
"""

from collections.abc import Mapping

from torch import Tensor
from torch.optim import Optimizer

from hf_cyclprune.engines.shards import Shards

MOMENTA = ("exp_avg", "momentum_buffer")
"""Names in the state of the optimizers of Adam's type, and of SGD and RMSprop."""


def reset_momentum_(
    shards: Shards, returned: Mapping[str, Tensor], optimizer: Optimizer | None
) -> None:
    """Set the momentum of the returned entries of weights to 0, where the optimizer has one.

    Args:
        shards: the parts of the weights that are held here.
        returned: name -> bool, shaped as the part.
        optimizer: may be wrapped, as accelerate does.

    Raises:
        ValueError: there is no optimizer.
    """
    if optimizer is None:
        raise ValueError(
            "reset_momentum needs the optimizer, but the pruner has none. Pass it, as in "
            "build_pruner(targets, total_steps, optimizer)."
        )
    for name, entries in returned.items():
        state = shards[name].state_of(optimizer)
        for momentum in (state.get(key) for key in MOMENTA):
            if isinstance(momentum, Tensor) and momentum.shape == entries.shape:
                momentum.masked_fill_(entries, 0.0)
