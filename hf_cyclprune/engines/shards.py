"""Parameters -> the parts of them that this process updates. The engine is told by the parameter.

What a Trainer or accelerate says of itself is not asked: transformers can divide weights at loading
under any of their engines.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hf_cyclprune.engines.ranks import Ranks
from hf_cyclprune.engines.shard import RowShard, Shard
from hf_cyclprune.engines.zero import ZeroShard, check_stage, is_zero

_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")


def plain_name(name: str) -> str:
    """Return the name that a parameter has in the model without what an engine puts around it."""
    return _WRAPPERS.sub("", name)


def shape_of(parameter: Tensor) -> tuple[int, ...]:
    """Return the shape of a whole weight, also where it is divided and its data may be empty."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


class Shards(Mapping[str, Shard]):
    """The local parts of some weights, by name.

    Args:
        parameters: name -> parameter of the model, as the engine has prepared it.
        optimizer: moves them; may be wrapped. ZeRO needs it.

    Raises:
        ValueError: an engine divides them in a way that cannot be pruned.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], optimizer: Optimizer | None = None
    ) -> None:
        self._shards = {name: _shard_of(name, p, optimizer) for name, p in parameters.items()}
        divided = [shard for shard in self._shards.values() if not shard.is_whole]
        self.ranks = Ranks(divided[0].group if divided else None)
        if any(shard.group != divided[0].group for shard in divided):
            raise ValueError(
                "All weights to prune must be divided among the same processes; got several groups."
                " Leave those of other groups, such as experts, out with ignore=."
            )
        if divided:
            device = divided[0].weight.device
            sizes = torch.tensor([shard.weight.numel() for shard in divided], device=device)
            for shard, counts in zip(divided, self.ranks.gather(sizes).t().tolist(), strict=True):
                shard.sizes = tuple(counts)
        check_stage(parameters, optimizer)
        for name, shard in self._shards.items():
            if not shard.is_whole and sum(shard.sizes) != shard.numel:
                raise ValueError(
                    f"All processes together must hold '{name}' once; got {sum(shard.sizes)} of "
                    f"its {shard.numel} elements. If DeepSpeed has trained this model before, make "
                    "a new Trainer with a new model: it cannot train one twice."
                )

    def __getitem__(self, name: str) -> Shard:
        return self._shards[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shards)

    def __len__(self) -> int:
        return len(self._shards)

    def size(self, names: Iterable[str]) -> int:
        """Return the number of elements of these whole weights."""
        return sum(self[name].numel for name in names)

    def is_counted(self, name: str) -> bool:
        """Whether counts of a weight's part are added up; of a whole one the first rank's count."""
        return not self[name].is_whole or self.ranks.rank == 0

    def sum(self, counts: Mapping[str, Tensor]) -> Tensor:
        """Return what is counted in whole weights, of the counts in parts.  # (names, ...)"""
        own = [count if self.is_counted(name) else count * 0 for name, count in counts.items()]
        return self.ranks.sum_(torch.stack(own))

    def ties_before(self, names: list[str], ties: Tensor) -> Tensor:
        """Return how many ties come before those in each part, in the order (name, flat index).

        Args:
            names: of weights that are ranked together.
            ties: in their parts on this rank.  # int64 (names,)
        """
        is_counted = [self.is_counted(name) for name in names]
        counted = ties * torch.tensor(is_counted, device=ties.device)
        every = self.ranks.gather(counted)  # (ranks, names)
        in_lower = every[: self.ranks.rank].sum(0)
        is_divided = torch.tensor([not self[n].is_whole for n in names], device=ties.device)
        totals = every.sum(0)
        before: Tensor = totals.cumsum(0) - totals + in_lower * is_divided
        return before

    def publish_(self) -> None:
        """Bring up to date what a step of the engine ends with: see `Shard.publish_`."""
        for shard in self.values():
            shard.publish_()

    def spread_(self) -> None:
        """Bring up to date what the next forward pass reads; asks all ranks."""
        for shard in self.values():
            shard.spread_()

    @property
    def wholes(self) -> Mapping[str, Tensor]:
        """The whole weights, each gathered from all ranks when it is asked for."""
        return _Wholes(self)


class _Wholes(Mapping[str, Tensor]):
    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    def __getitem__(self, name: str) -> Tensor:
        return self._shards[name].gather(self._shards[name].weight)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shards)

    def __len__(self) -> int:
        return len(self._shards)


def _shard_of(name: str, parameter: Any, optimizer: Optimizer | None) -> Shard:
    if is_zero(parameter):
        return ZeroShard(parameter, optimizer)
    placements = getattr(parameter.data, "placements", None)
    if placements is None:
        return Shard(parameter)
    divided = [placement for placement in placements if not placement.is_replicate()]
    if len(divided) != 1 or not divided[0].is_shard() or divided[0].dim != 0:
        raise ValueError(
            f"An engine must divide a weight by its rows; got '{name}' with {placements}. Tensor "
            "parallelism cannot be pruned: train with FSDP2, DeepSpeed ZeRO or "
            "DistributedDataParallel."
        )
    return RowShard(parameter)


def reshard(model: nn.Module) -> None:
    """Let a model of fully_shard forget the whole weights that an evaluation has left in it.

    Otherwise it goes on with them, and does not see what is written into its parts.
    """
    for module in model.modules():
        reshard_module: Any = getattr(module, "reshard", None)
        if reshard_module is not None and hasattr(module, "unshard"):
            reshard_module()
