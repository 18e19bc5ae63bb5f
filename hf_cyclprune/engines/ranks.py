"""The processes that train one model together, and how they agree on its masks."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed


def num_processes() -> int:
    """Return how many processes train together; 1 without torch.distributed."""
    is_running = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if is_running else 1


def process_index() -> int:
    """Return which of them this is, counted from 0."""
    return distributed.get_rank() if num_processes() > 1 else 0


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Return the sum over all processes of what each has seen of the data."""
    if num_processes() == 1:
        return tensor
    total = tensor.clone()
    distributed.all_reduce(total)
    return total


def sendable(tensor: Tensor, group: Any) -> Tensor:
    """Return a tensor where its group can send it from: nccl sends nothing that is on a CPU.

    That is where ZeRO's fp32 copies are with offload_optimizer.
    """
    backends = distributed.get_backend_config(group)  # such as "cpu:gloo,cuda:nccl"
    kinds = [backend.partition(":")[0] for backend in backends.split(",")]
    return tensor if tensor.device.type in kinds else tensor.to(kinds[0])


class Ranks:
    """Those among which the weights are divided; with whole weights, only this process.

    Args:
        group: of torch.distributed; None if no weight is divided.
    """

    def __init__(self, group: Any = None) -> None:
        self._group = group
        self.rank = 0 if group is None else distributed.get_rank(group)

    @property
    def is_divided(self) -> bool:
        """Whether the weights are divided among several processes."""
        return self._group is not None

    def sum_(self, counts: Tensor) -> Tensor:
        """Add up in place what each rank has counted in its parts of the weights."""
        if self._group is not None:
            sent = sendable(counts, self._group)
            distributed.all_reduce(sent, group=self._group)
            if sent is not counts:
                counts.copy_(sent)
        return counts

    def gather(self, counts: Tensor) -> Tensor:
        """Return the counts of every rank.  # (ranks, ...)"""
        if self._group is None:
            return counts[None]
        sent = sendable(counts, self._group)
        every = [torch.empty_like(sent) for _ in range(distributed.get_world_size(self._group))]
        distributed.all_gather(every, sent, group=self._group)
        return torch.stack(every).to(counts.device)

    def any(self, is_so: Tensor) -> Tensor:
        """Whether something is so on any rank.  # bool, any shape"""
        return self.sum_(is_so.to(torch.int32)) > 0


def check_same(masks: Mapping[str, Tensor]) -> None:
    """Raise where the processes that train copies of one model have different masks.

    Compares one checksum for each mask; waits for the device.

    Raises:
        ValueError: names the first weight whose masks differ.
    """
    if num_processes() == 1:
        return
    sums = torch.stack([mask_checksum(mask) for mask in masks.values()])
    extremes = torch.stack([sums, ~sums])
    distributed.all_reduce(extremes, op=distributed.ReduceOp.MAX)
    is_same = (extremes[0] == ~extremes[1]).tolist()
    differing = [name for name, same in zip(masks, is_same, strict=True) if not same]
    if differing:
        raise ValueError(
            f"All processes must have the same masks, but those of '{differing[0]}' differ "
            f"({len(differing)} of {len(masks)}): the weights have diverged. Wrap the model in "
            "DistributedDataParallel, or train with use_cpu=True or on one GPU for each process."
        )


def mask_checksum(mask: Tensor) -> Tensor:
    """Return a 64-bit number that differs, very probably, where two masks do.  # int64 scalar"""
    flat = mask.reshape(-1)
    num_words = flat.numel() // 8
    words = flat[: 8 * num_words].view(torch.int64)
    index = torch.arange(1, num_words + 1, device=mask.device)
    total = (words * (index * 0x5851F42D4C957F2D)).sum()  # wraps around
    rest = flat[8 * num_words :].to(torch.int64)
    return total + (rest << torch.arange(len(rest), device=mask.device)).sum()
