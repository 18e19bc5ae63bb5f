"""Exchanging a share of the kept weights of several groups for pruned ones."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hf_cyclprune.pruning.criterion import Criterion
from hf_cyclprune.pruning.ranking import Ranking


def exchange_groups_(
    ranking: Ranking,
    groups: Mapping[tuple[str, ...], int],
    share: float,
    drops: Criterion,
    returns: Criterion,
) -> Tensor:
    """Let weights of every group return for others, of which as many are pruned.

    Args:
        ranking: the weights and their masks.
        groups: names of the targets that are ranked together -> how many of their weights are
            pruned, before and after.
        share: of the kept weights of each group, in (0, 1).
        drops, returns: as in `Ranking.exchange_`.

    Returns:
        The sums of what `Ranking.exchange_` returns.  # (4,) fp32
    """
    shards = ranking.policy.shards
    device = next(iter(shards.values())).weight.device
    gains = torch.zeros(4, device=device)
    for names, num_pruned in groups.items():
        num_kept = shards.size(names) - num_pruned
        num_dropped = min(int(share * num_kept), num_kept - 1)
        if num_dropped > 0 and num_pruned:
            gains += ranking.exchange_(names, num_pruned, num_dropped, drops, returns)
    return gains
