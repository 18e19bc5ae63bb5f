"""Histograms of some bits of many int32 keys: what a radix select counts at each of its levels.

A CPU counts 16 bits at a time, in two passes over the keys. An accelerator counts 11, 11 and 10:
so few counters fit the fast memory that a block of its threads shares. There nothing is read back,
and small tensors are joined, so that a level takes few launches however many weights there are.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

KEY_BITS = 32
CPU_BITS, ACCELERATOR_BITS = 16, 11
CHUNK = 1 << 18  # keys counted at a time on a CPU: few enough for a core's cache
BATCH = 1 << 24  # keys that an accelerator counts at a time, and up to one tensor more


def count_digits(parts: Iterable[Tensor], prefix: Tensor, num_unknown: int) -> Tensor:
    """Return how often each value of the next bits occurs in the keys that begin with a prefix.

    The first bits of all keys are a signed number, of which the lowest value is counted first.

    Args:
        parts: flat int32 keys; only one batch lives at a time.
        prefix: an int64 scalar whose lower `num_unknown` bits are zero; not read for the first.
        num_unknown: bits of a key that come after the prefix; KEY_BITS at first.

    Returns:
        int64 counts, on the device of the keys.  # (2 ** number of bits,)
    """
    head = prefix.to(torch.int32)
    total: Tensor | None = None
    for keys in _pieces(parts, head, num_unknown):
        count = _count_on_cpu if keys.is_cpu else _count_without_wait
        counts = count(keys, head, num_unknown)
        total = counts if total is None else total.add_(counts)
        del keys
    assert total is not None, "targets are never empty"
    return total


def _pieces(parts: Iterable[Tensor], head: Tensor, num_unknown: int) -> Iterator[Tensor]:
    """Yield the keys to count at a time; on a CPU not many more than those with the prefix."""
    few: list[Tensor] = []
    for batch in map(joined, batches(parts)):
        for chunk in torch.split(batch, CHUNK) if batch.is_cpu else (batch,):
            is_sifted = chunk.is_cpu and num_unknown < KEY_BITS
            few.append(_sift(chunk, head, num_unknown) if is_sifted else chunk)
            if not is_sifted or sum(map(len, few)) >= CHUNK // 2:
                yield joined(few)
                few = []
        del batch, chunk
    if few:
        yield joined(few)


def _sift(keys: Tensor, head: Tensor, num_unknown: int) -> Tensor:
    """Return the keys that begin with the prefix and some others, if these are few, or else all."""
    if keys.numel() % 8:
        return keys
    is_within = (keys >> num_unknown).eq_(head >> num_unknown).to(torch.bool)
    groups = is_within.view(torch.int64).nonzero().view(-1)  # of eight keys, any of them within
    return keys if 32 * len(groups) > len(keys) else keys.view(-1, 8)[groups].view(-1)


def batches(parts: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield consecutive tensors: one at a time on a CPU, else until they hold BATCH keys."""
    batch: list[Tensor] = []
    for part in parts:
        batch.append(part)
        if part.is_cpu or sum(map(Tensor.numel, batch)) >= BATCH:
            yield batch
            batch = []
        del part  # before the next one is computed
    if batch:
        yield batch


def joined(batch: list[Tensor]) -> Tensor:
    """Return flat tensors in one, which is not a copy if there is only one."""
    return batch[0] if len(batch) == 1 else torch.cat(batch)


def _count_on_cpu(keys: Tensor, head: Tensor, num_unknown: int) -> Tensor:
    num_bins = 1 << CPU_BITS
    if num_unknown == KEY_BITS:
        digits = (keys >> KEY_BITS - CPU_BITS).add_(num_bins // 2)
        return torch.bincount(digits, minlength=num_bins)
    # What differs from the prefix is a number of few bits, or it is negative or has more.
    digits = (keys ^ head).clamp_(-1, num_bins).add_(1)
    return torch.bincount(digits, minlength=num_bins + 2)[1:-1]


def _count_without_wait(keys: Tensor, head: Tensor, num_unknown: int) -> Tensor:
    """Return the counts by histc, which does not wait for the device as bincount does.

    The upper half of its bins is dropped: what equals their upper end falls into the last one.
    """
    num_bits = min(ACCELERATOR_BITS, num_unknown)
    num_bins, num_lower = 1 << num_bits, num_unknown - num_bits
    if num_unknown == KEY_BITS:
        return _histc(keys >> num_lower, -num_bins // 2, 2 * num_bins, 2 * num_bins)[:num_bins]
    return _histc(keys ^ head, 0, 2 * num_bins << num_lower, 2 * num_bins)[:num_bins]


def _histc(numbers: Tensor, lowest: int, width: int, num_bins: int) -> Tensor:
    """Count int32 numbers in bins that together begin at `lowest` and are `width` wide.

    CUDA counts integers. What others count in fp32 is exact too: the numbers within are less than
    2^24, the widths powers of two, and no count of a part exceeds 2^24. So this may run where a
    user demands deterministic algorithms, though PyTorch does not count histc among them on a GPU:
    sums of whole numbers have no order.
    """
    parts = (numbers,) if numbers.is_cuda else torch.split(numbers.float(), 1 << 24)
    counts = torch.zeros(num_bins, dtype=torch.int64, device=numbers.device)
    demanded = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("default")
    try:
        for part in parts if numbers.numel() else ():
            found = torch.histc(part, bins=num_bins, min=lowest, max=lowest + width)
            counts += found.to(torch.int64)
    finally:
        torch.set_deterministic_debug_mode(demanded)
    return counts
