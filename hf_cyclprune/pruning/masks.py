"""Masks as one bit per weight, and how two sets of masks differ."""

from collections.abc import Mapping
from math import prod

import numpy as np
import torch
from torch import Tensor

from hf_cyclprune.engines.shards import Shards


def pack_mask(mask: Tensor) -> Tensor:
    """Pack a bool tensor into one bit per element on the CPU.  # (ceil(numel / 8),) uint8

    >>> pack_mask(torch.tensor([[True, False], [False, True]]))
    tensor([9], dtype=torch.uint8)
    """
    bits = mask.detach().reshape(-1).cpu().numpy()
    return torch.from_numpy(np.packbits(bits, bitorder="little"))


def unpack_mask(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the bool tensor of this shape that `pack_mask` packed.

    Raises:
        ValueError: the number of bytes does not fit the shape.
    """
    numel = prod(shape)
    if packed.dtype != torch.uint8 or packed.numel() != (numel + 7) // 8:
        raise ValueError(
            f"A packed mask of shape {shape} must be {(numel + 7) // 8} bytes; got "
            f"{packed.numel()} of {packed.dtype}. The file belongs to another model."
        )
    bits = np.unpackbits(packed.cpu().numpy(), count=numel, bitorder="little")
    return torch.from_numpy(bits.view(np.bool_)).reshape(shape)


def parts_of_packed(packed: Mapping[str, Tensor], shards: Shards) -> dict[str, Tensor]:
    """Return the packed masks of the parts that are held here, of packed masks of whole weights."""
    wholes = {name: unpack_mask(bits, shards[name].shape) for name, bits in packed.items()}
    return {name: pack_mask(shards[name].part_of(mask)) for name, mask in wholes.items()}


def compare_masks(
    reference: Mapping[str, Tensor], masks: Mapping[str, Tensor], shards: Shards | None = None
) -> tuple[float, float]:
    """Return (share of all weights that only `masks` keep, Jaccard distance of the kept sets).

    `reference` holds packed masks; `shards` says which parts of the weights both are of, None that
    they are whole. This waits for the device once, and asks all ranks.
    """
    counts = {}
    for name, mask in masks.items():
        before = unpack_mask(reference[name], tuple(mask.shape)).to(mask.device)
        some = [(mask > before).sum(), (mask & before).sum(), before.sum()]
        counts[name] = torch.stack(some)
    sums = shards.sum(counts) if shards is not None else torch.stack(list(counts.values()))
    recovered, in_both, kept_before = sums.sum(0).tolist()
    sizes = {name: mask.numel() for name, mask in masks.items()}
    total = sum(sizes.values() if shards is None else (shards[name].numel for name in masks))
    in_either = kept_before + recovered
    return recovered / total, 1.0 - in_both / in_either if in_either else 0.0
