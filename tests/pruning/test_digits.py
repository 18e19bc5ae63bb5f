from contextlib import ExitStack
from unittest import mock

import pytest
import torch

from hf_cyclprune.pruning import digits
from hf_cyclprune.pruning.digits import KEY_BITS, batches, count_digits
from hf_cyclprune.pruning.selection import HIGHEST_KEY, LOWEST_KEY

EXTREMES = [LOWEST_KEY, LOWEST_KEY + 1, -1, 0, 1, 1 << 21, 1 << 22, HIGHEST_KEY - 1, HIGHEST_KEY]


def count_one_by_one(keys, prefix, num_unknown, num_bins):
    """What the histogram is by its definition, in Python's integers."""
    counts = [0] * num_bins
    width = (1 << num_unknown) // num_bins
    for key in keys.tolist():
        if prefix <= key < prefix + (1 << num_unknown):
            counts[(key - prefix) // width] += 1
    return counts


@pytest.mark.parametrize("is_accelerator", [False, True])
@pytest.mark.parametrize("aim", [*EXTREMES, 0x3C123456, -0x3C123456])
def test_the_digits_of_every_level_are_counted_within_the_prefix(
    pretend_accelerator, is_accelerator, aim
):
    generator = torch.Generator().manual_seed(0)
    near = aim + torch.randint(-5000, 5001, (3000,), generator=generator)
    anywhere = torch.randint(LOWEST_KEY, HIGHEST_KEY, (3000,), generator=generator)
    keys = torch.cat([near, anywhere, torch.tensor([*EXTREMES, *12 * [aim]])])
    keys = keys.clamp(LOWEST_KEY, HIGHEST_KEY).to(torch.int32)
    num_unknown, prefix, level_bits = KEY_BITS, LOWEST_KEY, []
    with pretend_accelerator() if is_accelerator else ExitStack():
        while num_unknown:
            parts = iter(keys.split(1000))
            counts = count_digits(parts, torch.tensor(prefix), num_unknown).tolist()
            assert counts == count_one_by_one(keys, prefix, num_unknown, len(counts))
            level_bits.append(len(counts).bit_length() - 1)
            num_unknown -= level_bits[-1]
            prefix += (aim - prefix >> num_unknown) << num_unknown
    assert prefix == aim
    assert level_bits == ([11, 11, 10] if is_accelerator else [16, 16])


def test_counts_are_exact_beyond_the_integers_of_fp32(pretend_accelerator):
    num_keys = (1 << 24) + 3
    with pretend_accelerator():
        keys = torch.zeros(num_keys, dtype=torch.int32)
        counts = count_digits([keys], torch.tensor(LOWEST_KEY), KEY_BITS)
    assert counts[1024] == counts.sum() == num_keys


@pytest.mark.parametrize("is_accelerator", [False, True])
def test_nothing_is_counted_in_an_empty_part(pretend_accelerator, is_accelerator):
    empty = torch.zeros(0, dtype=torch.int32)
    with pretend_accelerator() if is_accelerator else ExitStack():
        for num_unknown in (KEY_BITS, 16):
            assert not count_digits([empty], torch.tensor(0), num_unknown).any()


def test_an_accelerator_counts_small_tensors_together_and_a_cpu_one_at_a_time(pretend_accelerator):
    sizes = [3, 4, 5, 20, 1, 2]
    parts = [torch.zeros(size, dtype=torch.int32) for size in sizes]
    assert [len(batch) for batch in batches(parts)] == 6 * [1]
    with pretend_accelerator(), mock.patch.object(digits, "BATCH", 10):
        found = list(batches(parts))
    assert [[part.numel() for part in batch] for batch in found] == [[3, 4, 5], [20], [1, 2]]
    assert all(a is b for a, b in zip((p for batch in found for p in batch), parts, strict=True))


@pytest.mark.parametrize("mode", ["warn", "error"])
def test_counting_goes_on_where_deterministic_algorithms_are_demanded(pretend_accelerator, mode):
    torch.set_deterministic_debug_mode(mode)
    try:
        with pretend_accelerator():
            keys = torch.arange(5, dtype=torch.int32)
            assert count_digits([keys], torch.tensor(0), 10)[:6].tolist() == [1, 1, 1, 1, 1, 0]
        assert torch.get_deterministic_debug_mode() == {"warn": 1, "error": 2}[mode]
    finally:
        torch.set_deterministic_debug_mode("default")
