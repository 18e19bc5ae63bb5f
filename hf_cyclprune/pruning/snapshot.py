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

from hf_cyclprune.engines.ranks import process_index, sum_over_processes
from hf_cyclprune.pruning.criterion import Criterion
from hf_cyclprune.pruning.masks import pack_mask, unpack_mask
from hf_cyclprune.pruning.pruner import Pruner


def take_snapshot(pruner: Pruner) -> dict[str, Tensor]:
    """Return copies on the CPU of all that `pruner` needs to go on bit for bit; asks all ranks.

    They are those of whole weights, so that a run may go on with another number of ranks.
    """
    tensors = {"num_returned": pruner.num_returned}
    tensors |= {f"value.{name}": pruner.policy.saved(name) for name in pruner.policy.values}
    if pruner.ranking.protected:
        for name, mask in pruner.ranking.protected.items():
            tensors[f"protected.{name}"] = pack_mask(pruner.shards[name].gather(mask))
        tensors["protected_until"] = torch.tensor(pruner.ranking.protected_until)
    for kind, criterion in _criteria(pruner).items():
        for quantity, known in criterion.memory.items():
            for name in filter(known.__contains__, pruner.shards):  # one order on all ranks
                tensor = known[name]
                if quantity in criterion.shared:
                    tensor = sum_over_processes(tensor)
                elif tensor.dim() > 0:
                    tensor = pruner.shards[name].gather(tensor)
                tensors[f"{kind}.{quantity}.{name}"] = tensor
    moments = pruner.observation.moments
    for name in filter(moments.own.__contains__, pruner.shards):
        tensors[f"moment.{name}"] = pruner.shards[name].gather(moments.own[name])
    tensors |= {f"steps.{name}": torch.tensor(n) for name, n in moments.num_steps.items()}
    return {key: tensor.detach().cpu().clone() for key, tensor in tensors.items()}


def restore_snapshot(pruner: Pruner, tensors: Mapping[str, Tensor]) -> None:
    """Put a snapshot into a pruner with the same targets, whose masks are restored already.

    What its method has no place for is left out, so that a run may go on with another method.
    """
    criteria, moments = _criteria(pruner), pruner.observation.moments

    def part(name: str, whole: Tensor) -> Tensor:
        mine = pruner.shards[name].part_of(whole) if whole.dim() > 0 else whole
        return mine.to(pruner.masks[name].device, copy=True)

    for key, tensor in tensors.items():
        kind, _, name = key.partition(".")
        if kind == "num_returned":
            pruner.num_returned.copy_(tensor)
        elif kind == "protected_until":
            pruner.ranking.protected_until = int(tensor)
        elif kind == "value" and name in pruner.policy.values:
            pruner.policy.load(name, tensor)
        elif kind == "protected":
            pruner.ranking.protected[name] = part(name, unpack_mask(tensor, pruner.shapes[name]))
        elif kind in criteria:
            quantity, _, target = name.partition(".")
            known = criteria[kind].memory.setdefault(quantity, {})
            is_shared = quantity in criteria[kind].shared
            known[target] = _first_has(tensor, pruner) if is_shared else part(target, tensor)
        elif kind == "moment":
            moments.own[name] = part(name, tensor)
        elif kind == "steps":
            moments.num_steps[name] = int(tensor)


def _first_has(total: Tensor, pruner: Pruner) -> Tensor:
    """Return a sum over all processes as the first one's part, and zeros for the others."""
    return (total * (process_index() == 0)).to(pruner.num_returned.device)


def _criteria(pruner: Pruner) -> dict[str, Criterion]:
    regrowth = pruner.recovery.regrowth
    others = {"regrowth": regrowth.criterion} if regrowth is not None else {}
    return {"criterion": pruner.criterion, **others}
