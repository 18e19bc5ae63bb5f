"""What a pruner remembers besides its masks, as tensors to save with a checkpoint.

value.NAME                 values of the pruned weights, in the order of the flat index
protected.NAME             packed mask of the weights that are not pruned yet
protected_until            the last optimizer step in which they are not
criterion.QUANTITY.NAME    what the criterion observed, fp32
regrowth.QUANTITY.NAME     what the criterion of the regrowth observed
moment.NAME, steps.NAME    our average of the squared gradient, and the steps in it
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from hf_cyclprune.pruning.criterion import Criterion
from hf_cyclprune.pruning.masks import pack_mask, unpack_mask
from hf_cyclprune.pruning.pruner import Pruner


def take_snapshot(pruner: Pruner) -> dict[str, Tensor]:
    """Return copies on the CPU of all that `pruner` needs to go on bit for bit."""
    tensors = {"num_returned": pruner.num_returned}
    tensors |= {f"value.{name}": pruner.policy.saved(name) for name in pruner.policy.values}
    protected = pruner.ranking.protected
    if protected:
        tensors |= {f"protected.{name}": pack_mask(mask) for name, mask in protected.items()}
        tensors["protected_until"] = torch.tensor(pruner.ranking.protected_until)
    for kind, criterion in _criteria(pruner).items():
        for quantity, known in criterion.memory.items():
            tensors |= {f"{kind}.{quantity}.{name}": tensor for name, tensor in known.items()}
    moments = pruner.observation.moments
    tensors |= {f"moment.{name}": tensor for name, tensor in moments.own.items()}
    tensors |= {f"steps.{name}": torch.tensor(n) for name, n in moments.num_steps.items()}
    return {key: tensor.detach().cpu().clone() for key, tensor in tensors.items()}


def restore_snapshot(pruner: Pruner, tensors: Mapping[str, Tensor]) -> None:
    """Put a snapshot into a pruner with the same targets, whose masks are restored already.

    What its method has no place for is left out, so that a run may go on with another method.
    """
    criteria, moments = _criteria(pruner), pruner.observation.moments
    for key, tensor in tensors.items():
        kind, _, name = key.partition(".")
        if kind == "num_returned":
            pruner.num_returned.copy_(tensor)
        elif kind == "protected_until":
            pruner.ranking.protected_until = int(tensor)
        elif kind == "value" and name in pruner.policy.values:
            pruner.policy.load(name, tensor)
        elif kind == "protected":
            mask = unpack_mask(tensor, pruner.shapes[name])
            pruner.ranking.protected[name] = mask.to(pruner.masks[name].device)
        elif kind in criteria:
            quantity, _, target = name.partition(".")
            known = criteria[kind].memory.setdefault(quantity, {})
            known[target] = tensor.to(pruner.targets[target].device, copy=True)
        elif kind == "moment":
            moments.own[name] = tensor.to(pruner.targets[name].device, copy=True)
        elif kind == "steps":
            moments.num_steps[name] = int(tensor)


def _criteria(pruner: Pruner) -> dict[str, Criterion]:
    regrowth = pruner.recovery.regrowth
    others = {"regrowth": regrowth.criterion} if regrowth is not None else {}
    return {"criterion": pruner.criterion, **others}
