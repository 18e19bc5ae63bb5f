"""How far a weight that returns from zero can travel, against the smallest weight that is kept.

An update of Adam moves a weight by about the learning rate at most. So in one cycle a weight that
starts from zero can get about as far as the sum of the cycle's learning rates. Where even that is
less than the smallest kept weight, no pruned weight can recover by its magnitude.
"""

import warnings
from collections.abc import Mapping
from statistics import median
from typing import Any

from torch import Tensor

from hf_cyclprune.engines.shard import Shard, unwrapped
from hf_cyclprune.pruning.pruner import Pruner
from hf_cyclprune.pruning.schedules import Schedule
from hf_cyclprune.reporting.numbers import number

_SAMPLE = 1 << 16  # weights of a matrix that are looked at


def find_reach(
    shards: Mapping[str, Shard], schedule: Schedule, optimizer: Any, lr_scheduler: Any
) -> float | None:
    """Return the reach of a run's last cycle: the median over the targets of

        sum of the learning rates / smallest |w| that is kept at the target sparsity

    by the weights as they are now, of divided ones by the part that is here. None where it is not
    known: for optimizers other than Adam's family, and learning rates that are no function of the
    step.
    """
    inner, scheduler = unwrapped(optimizer), getattr(lr_scheduler, "scheduler", lr_scheduler)
    curves = getattr(scheduler, "lr_lambdas", None)
    if inner is None or "betas" not in inner.defaults or not curves:
        return None
    start, end = schedule.edges[-2:]
    travel = sum(scheduler.base_lrs[0] * curves[0](step) for step in range(start, end))
    weights = [shard.weight for shard in shards.values() if shard.weight.numel()]
    smallest = [_quantile(weight, schedule.sparsity) for weight in weights]
    return median(travel / size if size else float("inf") for size in smallest or [0.0])


def _quantile(weight: Tensor, sparsity: float) -> float:
    """Return the |w| below which this share of the weights lies, from a regular sample."""
    flat = weight.flatten()
    sample = flat[:: max(1, flat.numel() // _SAMPLE)].abs().float()
    # PyTorch refuses kthvalue on a GPU where deterministic algorithms are demanded.
    return float(sample.sort().values[min(int(sparsity * sample.numel()), sample.numel() - 1)])


def warn_of_reach(pruner: Pruner, reach: float | None, criterion: str) -> None:
    """Warn if sparsity falls to let weights recover, but they cannot get far enough."""
    schedule, recovery = pruner.schedule, pruner.recovery
    edges = schedule.edges[1:-1]
    falls = any(schedule.sparsity_at(e + 1) < schedule.sparsity_at(e) for e in edges)
    is_from_zero = not pruner.policy.keeps_values and recovery.regrowth is None
    if reach is not None and reach < 1.0 and falls and is_from_zero and criterion == "magnitude":
        warnings.warn(
            "Hardly any pruned weight will recover in this run: a weight that returns from zero "
            f"can travel {number(reach)} of the way to the smallest kept weight in a cycle. Train "
            "longer or with a larger learning rate, keep the values with pruned_weights='stored' "
            "and criterion='fisher', or choose a method without cycles, such as 'fisher'.",
            stacklevel=2,
        )
