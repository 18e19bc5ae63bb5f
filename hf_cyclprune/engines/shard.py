"""The part of one weight that this process updates, whatever engine has divided it.

Every engine that is supported gives a process a contiguous range of the flat weight, the ranges in
the order of the ranks. So what a shard needs to know of the others is how many elements they hold.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, distributed
from torch.optim import Optimizer

from hf_cyclprune.engines.ranks import sendable


class Shard:
    """A weight that this process has all of: one device, or one of several that train copies.

    Args:
        parameter: of the model.
    """

    is_whole = True
    """Whether the local part is all of the weight."""
    has_whole_rows = True
    """Whether the local part is shaped (rows, ...), and not flat."""

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter
        self.sizes: tuple[int, ...] = ()
        """Elements that each rank of the group holds; () if this one holds all."""
        self.rank = 0
        """Of this process in the group among which the weight is divided."""
        self.group: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole weight."""
        return tuple(self.parameter.shape)

    @property
    def numel(self) -> int:
        """Number of elements of the whole weight."""
        return prod(self.shape)

    @property
    def weight(self) -> Tensor:
        """The local part, which the optimizer updates: change it in place, then `publish_`."""
        return self.parameter.detach()

    @property
    def gradient(self) -> Tensor | None:
        """The gradient of the local part, averaged over the ranks; None where there is none now."""
        return self.parameter.grad

    def hold_gradient(self) -> None:
        """Keep the gradient until the next step, for an engine that drops it early."""

    def state_of(self, optimizer: Optimizer | None) -> Mapping[str, Any]:
        """Return an optimizer's state of the local part, such as exp_avg; {} if it has none.

        The optimizer may be wrapped, as by accelerate.
        """
        inner = unwrapped(optimizer)
        return inner.state.get(self.parameter, {}) if inner is not None else {}

    def publish_(self) -> None:
        """Bring the copy that a step of the engine ends with up to date; only within a step."""

    def spread_(self) -> None:
        """Bring all copies up to date that the next forward pass reads, on every rank."""

    def part_of(self, whole: Tensor) -> Tensor:
        """Return the local part of a tensor that is shaped as the whole weight."""
        return whole

    def gather(self, part: Tensor) -> Tensor:
        """Return the whole of which every rank has a part shaped as its weight; asks all ranks."""
        return part


class DividedShard(Shard):
    """A range of the flat weight."""

    is_whole = False

    @property
    def start(self) -> int:
        """Flat index in the whole weight of the first element that is held here."""
        return sum(self.sizes[: self.rank])

    def part_of(self, whole: Tensor) -> Tensor:
        flat = whole.reshape(-1)[self.start : self.start + self.sizes[self.rank]]
        return flat.view(-1, *self.shape[1:]) if self.has_whole_rows else flat

    def gather(self, part: Tensor) -> Tensor:
        bits = part.reshape(-1)
        bits = bits.view(torch.uint8) if bits.dtype == torch.bool else bits
        padded = bits.new_zeros(max(self.sizes))
        padded[: bits.numel()] = bits
        padded = sendable(padded, self.group)
        parts = [torch.empty_like(padded) for _ in self.sizes]
        distributed.all_gather(parts, padded, group=self.group)
        flat = torch.cat([p[:size] for p, size in zip(parts, self.sizes, strict=True)])
        return flat.to(part.device).view(part.dtype).view(self.shape)


class RowShard(DividedShard):
    """Some rows of a weight that fully_shard (FSDP2), or another user of DTensor, has divided."""

    def __init__(self, parameter: Any) -> None:
        super().__init__(parameter)
        divided = [i for i, placement in enumerate(parameter.placements) if placement.is_shard()]
        self.rank = parameter.device_mesh.get_local_rank(divided[0])
        self.group = parameter.device_mesh.get_group(divided[0])

    @property
    def weight(self) -> Tensor:
        return _local(self.parameter.detach())

    @property
    def gradient(self) -> Tensor | None:
        gradient = self.parameter.grad
        return None if gradient is None else _local(gradient)

    def state_of(self, optimizer: Optimizer | None) -> Mapping[str, Any]:
        state = super().state_of(optimizer)
        return {k: _local(v) if hasattr(v, "to_local") else v for k, v in state.items()}


def _local(tensor: Any) -> Tensor:
    """Return the local part of a DTensor."""
    local: Tensor = tensor.to_local()
    return local


def unwrapped(optimizer: Any) -> Optimizer | None:
    """Return the optimizer of torch that others, such as accelerate's, are around."""
    inner: Optimizer | None = optimizer
    while inner is not None and hasattr(inner, "optimizer"):
        inner = inner.optimizer
    return inner
