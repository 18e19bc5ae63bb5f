"""Exact order statistics of many tensors at once, by radix select: no sort, no concatenation.

Scores become int32 keys of the same order. One integer histogram of the keys' first bits, and then
one of the next bits of the keys in a single bin of it, find any one key exactly. Histograms of
several tensors are added, so that not much more than one tensor is ever allocated. Ties are broken
by position: of equal keys those that come first are kept.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hf_cyclprune.engines.ranks import Ranks
from hf_cyclprune.engines.shards import Shards
from hf_cyclprune.pruning.digits import KEY_BITS, batches, count_digits, joined

HIGHEST_KEY = torch.iinfo(torch.int32).max
LOWEST_KEY = torch.iinfo(torch.int32).min  # below minus infinity's bits
NAN_KEY = 0x7F80_0001  # above infinity's bits, below the key of what is protected
ALONE = Ranks()

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


def find_cut(keys: Keys, num_pruned: int, ranks: Ranks = ALONE) -> Cut:
    """Return the cut that prunes exactly the lowest `num_pruned` keys, without device waits.

    Args:
        keys: see `Keys`; called twice on a CPU, three times on an accelerator.
        num_pruned: in 0 .. number of keys of all ranks - 1.
        ranks: each has keys of its own; their histograms are added up, 1 MiB in all.
    """
    # Both scalars start on the CPU, whence they go into an accelerator's arithmetic without a wait.
    prefix, rank = torch.tensor(LOWEST_KEY), torch.tensor(num_pruned)
    num_unknown = KEY_BITS
    while num_unknown:
        counts = ranks.sum_(count_digits(keys(), prefix, num_unknown))  # (2 ** bits of a digit,)
        num_unknown -= counts.numel().bit_length() - 1
        ends = counts.cumsum(0)  # entries up to and including each digit
        digit = (ends <= rank).sum()
        num_ties = counts.take(digit)  # an index in brackets would wait
        prefix = prefix + (digit << num_unknown)
        rank = rank - ends.take(digit) + num_ties
    return Cut(prefix, rank, num_ties)


def keep_above_(
    mask: Tensor, keys: Tensor, cut: Cut, num_ties_seen: Tensor | int = 0
) -> Tensor | int:
    """Write into the flat bool `mask` where `cut` keeps; return the number of ties seen so far.

    Ties are not counted any more where all that follow have the same fate.

    Args:
        mask: flat, as long as `keys`.
        num_ties_seen: ties in the tensors before this one.
    """
    num_kept = cut.num_ties - cut.num_ties_pruned - num_ties_seen
    if keys.is_cpu:  # asking an accelerator would wait
        result, num_ties = torch.empty_like(keys), 0  # a CPU compares int32 faster into int32
        if cut.num_ties_pruned and num_kept > 0:
            num_ties = int(torch.eq(keys, cut.key, out=result).sum(dtype=torch.int32))
        if not num_ties > num_kept > 0:
            compare = torch.ge if num_kept > 0 else torch.gt
            mask.copy_(compare(keys, cut.key, out=result))
            return num_ties_seen + num_ties
    is_tie = keys == cut.key
    torch.gt(keys, cut.key, out=mask)
    mask |= is_tie & (is_tie.cumsum(0, dtype=torch.int32) <= num_kept)
    return num_ties_seen + is_tie.sum()


def prune_lowest_(masks: Iterable[Tensor], keys: Keys, num_pruned: int) -> None:
    """Write False into `masks` where the lowest `num_pruned` keys are, and True elsewhere.

    Args:
        masks: flat bool tensors, as long as those of `keys`, in the same order.
        keys: see `Keys`; called once more than by `find_cut`.
        num_pruned: in 0 .. number of keys - 1.
    """
    cut = find_cut(keys, num_pruned)
    num_ties_seen: Tensor | int = 0
    rest = iter(masks)
    for parts in batches(keys()):
        flat, written = joined(parts), [next(rest) for _ in parts]
        mask = torch.empty_like(flat, dtype=torch.bool) if len(parts) > 1 else written[0]
        num_ties_seen = keep_above_(mask, flat, cut, num_ties_seen)
        if len(parts) > 1:
            for own, kept in zip(written, torch.split(mask, list(map(len, parts))), strict=True):
                own.copy_(kept)
        del parts, flat


def prune_lowest_of_parts_(
    masks: Iterable[Tensor],
    keys: Keys,
    num_pruned: int,
    owners: Sequence[str],
    shards: Shards,
) -> None:
    """Do what `prune_lowest_` does with keys that are divided among ranks; asks all ranks.

    Args:
        masks: flat bool tensors, as long as those of `keys`, in the same order.
        keys: of the parts that are held here; called twice more than by `find_cut`.
        num_pruned: of the keys of all ranks together.
        owners: the name of the target that each tensor of `keys` belongs to.
        shards: says which keys are counted, and in which order ties are.
    """
    counted = [shards.is_counted(name) for name in owners]
    cut = find_cut(lambda: _some(keys, counted), num_pruned, shards.ranks)
    ties = {name: torch.zeros_like(cut.key) for name in owners}
    for name, part in zip(owners, keys(), strict=True):
        ties[name] += (part == cut.key).sum()
    names = list(ties)
    before = shards.ties_before(names, torch.stack(list(ties.values())))
    seen: dict[str, Tensor | int] = dict(zip(names, before, strict=True))
    for name, mask, part in zip(owners, masks, keys(), strict=True):
        seen[name] = keep_above_(mask, part, cut, seen[name])


def _some(keys: Keys, are_counted: Iterable[bool]) -> Iterable[Tensor]:
    """Yield the keys, of those that another rank counts none."""
    return (part if ok else part[:0] for part, ok in zip(keys(), are_counted, strict=True))
