"""Whether a pruning step makes sense after this optimizer step, asked of the weights themselves."""

from collections.abc import Mapping, Set

import torch
from torch import Tensor


def are_ready(
    targets: Mapping[str, Tensor],
    groups: Mapping[int, Mapping[str, Tensor]],
    resets: Set[int],
    reads: Set[str],
) -> dict[int, bool]:
    """Return for each group whether it can be pruned now; waits for the device once at most.

    Args:
        targets: name -> weight, after the optimizer's step.
        groups: number of a group -> its masks by name.
        resets: groups whose weights return: one must not be zero, by a move or a value put back.
        reads: what the scores read; gradients must be finite.
    """
    checks = {g: _check(targets, masks, g in resets, reads) for g, masks in groups.items()}
    asked = {g: check for g, check in checks.items() if check is not None}
    answers = torch.stack(list(asked.values())).tolist() if asked else []
    return dict.fromkeys(checks, True) | dict(zip(asked, answers, strict=True))


def _check(
    targets: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    is_reset: bool,
    reads: Set[str],
) -> Tensor | None:
    """Return a bool on the device that allows to prune a group; None if nothing forbids it."""
    weights = {name: targets[name] for name in masks}
    conditions = []
    if is_reset:  # some pruned weight is not zero; `>` on bools is "and not"
        moved = [((w != 0) > masks[name]).any() for name, w in weights.items()]
        conditions.append(torch.stack(moved).any())
    if "gradient" in reads:
        gradients = [w.grad for w in weights.values() if w.grad is not None]
        conditions += [gradient.isfinite().all() for gradient in gradients]
    return torch.stack(conditions).all() if conditions else None
