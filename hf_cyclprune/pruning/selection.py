"""Exact order statistics of many tensors at once, by radix select: no sort, no concatenation.

Scores become int32 keys of the same order. One integer histogram of the keys' upper 16 bits, and
one of the lower 16 bits of the keys in a single bin of it, find any one key exactly. Histograms of
several tensors are added, so that nothing larger than one tensor is ever allocated. Ties are broken
by position: of equal keys those that come first are kept.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

HIGHEST_KEY = torch.iinfo(torch.int32).max
LOWEST_KEY = torch.iinfo(torch.int32).min  # below minus infinity's bits
NAN_KEY = 0x7F80_0001  # above infinity's bits, below the key of what is protected
DIGITS = 1 << 16
CHUNK = 1 << 18  # keys counted at a time on a CPU: few enough for a core's cache

Keys = Callable[[], Iterable[Tensor]]
"""Yields the flat int32 keys of every tensor that is ranked together, in target order."""


def order_keys(scores: Tensor, *, is_signed: bool = True) -> Tensor:
    """Return flat keys in the order of the scores; NaNs are equal and highest, -0.0 equals +0.0.

    `is_signed=False` promises that no score has its sign bit set, which saves most of the work.

    >>> order_keys(torch.tensor([0.5, -0.0, -2.0, 0.0])).argsort(stable=True).tolist()
    [2, 1, 3, 0]
    """
    scores = scores.detach().reshape(-1).to(torch.float32)  # exact for fp32, bf16 and fp16
    if not is_signed:  # in place is harmless: a NaN's bits become those of another NaN
        return scores.contiguous().view(torch.int32).clamp_max_(NAN_KEY)
    bits = (scores + 0.0).view(torch.int32)  # + 0.0 turns -0.0 into +0.0
    keys = bits ^ ((bits >> 31) & HIGHEST_KEY)  # a negative float's bits order backwards
    return keys.masked_fill_(scores.isnan(), NAN_KEY)


class Cut(NamedTuple):
    """The border between pruned and kept: keys below `key` are pruned, keys above it kept.

    Of the `num_ties` keys equal to it, the last `num_ties_pruned` are pruned. All three are int64
    scalars on the keys' device.
    """

    key: Tensor
    num_ties_pruned: Tensor
    num_ties: Tensor


def find_cut(keys: Keys, num_pruned: int) -> Cut:
    """Return the cut that prunes exactly the lowest `num_pruned` keys, without device waits.

    Args:
        keys: see `Keys`; called twice.
        num_pruned: in 0 .. number of keys - 1.
    """
    upper = _count(keys, lambda chunk: (chunk >> 16) + DIGITS // 2, DIGITS)
    rank = torch.tensor(num_pruned, device=upper.device)
    below, high_bin = _locate(upper, rank)
    high = (high_bin - DIGITS // 2).to(torch.int32)

    def lower_digits(chunk: Tensor) -> Tensor:  # 0 where the upper bits differ: one bin for all
        return (chunk & 0xFFFF).add_(1).mul_((chunk >> 16) == high)

    lower = _count(keys, lower_digits, DIGITS + 1)[1:]
    below, low = _locate(lower, rank := rank - below)
    return Cut((high.to(torch.int64) << 16) + low, rank - below, lower[low])


def keep_above_(mask: Tensor, keys: Tensor, cut: Cut, num_ties_seen: Tensor | int = 0) -> Tensor:
    """Write into the flat bool `mask` where `cut` keeps; return the number of ties seen so far.

    Args:
        mask: flat, as long as `keys`.
        num_ties_seen: ties in the tensors before this one.
    """
    num_kept = cut.num_ties - cut.num_ties_pruned - num_ties_seen
    if keys.is_cpu and not cut.num_ties_pruned:  # the usual case; asking an accelerator would wait
        torch.ge(keys, cut.key, out=mask)
        return cut.num_ties
    torch.gt(keys, cut.key, out=mask)
    is_tie = keys == cut.key
    num_ties = is_tie.count_nonzero()
    if keys.is_cpu and num_ties <= num_kept:
        mask |= is_tie
    elif not keys.is_cpu or num_kept > 0:
        mask |= is_tie & (is_tie.cumsum(0, dtype=torch.int32) <= num_kept)
    return num_ties_seen + num_ties


def prune_lowest_(masks: Iterable[Tensor], keys: Keys, num_pruned: int) -> None:
    """Write False into `masks` where the lowest `num_pruned` keys are, and True elsewhere.

    Args:
        masks: flat bool tensors, as long as those of `keys`, in the same order.
        keys: see `Keys`; called three times.
        num_pruned: in 0 .. number of keys - 1.
    """
    cut = find_cut(keys, num_pruned)
    num_ties_seen: Tensor | int = 0
    for mask, part in zip(masks, keys(), strict=True):
        num_ties_seen = keep_above_(mask, part, cut, num_ties_seen)


def _count(keys: Keys, to_digits: Callable[[Tensor], Tensor], num_bins: int) -> Tensor:
    """Return one histogram of the digits of all keys; only one tensor lives at a time."""
    total: Tensor | None = None
    for tensor in keys():
        for chunk in torch.split(tensor, CHUNK if tensor.is_cpu else max(tensor.numel(), 1)):
            histogram = _histogram(to_digits(chunk), num_bins)
            total = histogram if total is None else total.add_(histogram)
        del tensor, chunk
    assert total is not None, "targets are never empty"
    return total


def _locate(histogram: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """Return (entries below the bin, the bin) of the entry with this rank, counted from 0."""
    ends = histogram.cumsum(0)  # (num_bins): entries up to and including each bin
    bin_ = torch.searchsorted(ends, rank, right=True)
    return ends[bin_] - histogram[bin_], bin_


def _histogram(digits: Tensor, num_bins: int) -> Tensor:
    """int64 counts of the digits 0 .. num_bins - 1.  # (num_bins,)"""
    if digits.is_cpu:
        return torch.bincount(digits, minlength=num_bins)
    return _histogram_without_wait(digits, num_bins)


def _histogram_without_wait(digits: Tensor, num_bins: int) -> Tensor:
    """Return the same counts by histc, which does not wait for the device as bincount does.

    With a power of two as the number of bins its fp32 arithmetic is exact, as are its counts of up
    to 2^24 entries.
    """
    size = 1 << (num_bins - 1).bit_length()
    counts = torch.zeros(num_bins, dtype=torch.int64, device=digits.device)
    for part in torch.split(digits, 1 << 24):
        counts += torch.histc(part.float(), bins=size, min=0, max=size)[:num_bins].to(torch.int64)
    return counts
