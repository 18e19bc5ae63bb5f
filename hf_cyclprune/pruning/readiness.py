"""Whether a pruning step makes sense after this optimizer step, asked of the weights themselves."""

from collections.abc import Mapping, Set

import torch
from torch import Tensor

from hf_cyclprune.engines.shards import Shards


def are_ready(
    shards: Shards,
    groups: Mapping[int, Mapping[str, Tensor]],
    resets: Set[int],
    reads: Set[str],
) -> dict[int, bool]:
    """Return for each group whether it can be pruned now; waits for the device once at most.

    Args:
        shards: name -> weight, after the optimizer's step.
        groups: number of a group -> its masks by name.
        resets: groups whose weights return: one must not be zero, by a move or a value put back.
        reads: what the scores read; gradients must be finite.
    """
    checks = {g: _check(shards, masks, g in resets, reads) for g, masks in groups.items()}
    asked = {g: check for g, check in checks.items() if check is not None}
    if not asked:
        return dict.fromkeys(checks, True)
    has_moved, is_bad = shards.ranks.any(torch.stack(list(asked.values()))).t().tolist()
    answers = [moved and not bad for moved, bad in zip(has_moved, is_bad, strict=True)]
    return dict.fromkeys(checks, True) | dict(zip(asked, answers, strict=True))


def _check(
    shards: Shards,
    masks: Mapping[str, Tensor],
    is_reset: bool,
    reads: Set[str],
) -> Tensor | None:
    """Return whether a pruned weight is not zero here, and whether a gradient is not finite.

    None if neither matters.  # bool (2,), on the device
    """
    if not (is_reset or "gradient" in reads):
        return None
    some = next(iter(masks.values()))
    has_moved, is_bad = some.new_full((), not is_reset), some.new_zeros(())
    for name, mask in masks.items():
        shard = shards[name]
        if is_reset:  # `>` on bools is "and not"
            has_moved = has_moved | ((shard.weight != 0) > mask).any()
        if "gradient" in reads and shard.gradient is not None:
            is_bad = is_bad | ~shard.gradient.isfinite().all()
    return torch.stack([has_moved, is_bad])
