import math
from contextlib import ExitStack
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_cyclprune.pruning import selection
from hf_cyclprune.pruning.selection import DIGITS, HIGHEST_KEY, find_cut, keep_above_, order_keys

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
MINUS_NAN = math.copysign(math.nan, -1.0)
SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, math.inf, -math.inf, math.nan, MINUS_NAN]


def select(tensors, num_pruned, *, is_signed=True):
    """The masks of scores that are ranked together, as a pruner computes them."""
    keys = [order_keys(scores, is_signed=is_signed) for scores in tensors]
    before = [key.clone() for key in keys]
    cut = find_cut(lambda: iter(keys), num_pruned)
    masks, num_ties_seen = [], 0
    for scores, key in zip(tensors, keys, strict=True):
        mask = torch.rand(key.shape) < 0.5  # whatever was there is overwritten
        num_ties_seen = keep_above_(mask, key, cut, num_ties_seen)
        masks.append(mask.view(scores.shape))
    assert all(torch.equal(key, old) for key, old in zip(keys, before, strict=True))
    return masks


def assert_equal(masks, expected):
    assert [m.tolist() for m in masks] == [m.tolist() for m in expected]


@st.composite
def scores_and_count(draw, values):
    dtype = draw(st.sampled_from(DTYPES))
    parts = draw(st.lists(st.lists(values, min_size=1, max_size=12), min_size=1, max_size=4))
    tensors = [torch.tensor(part).to(dtype) for part in parts]
    return tensors, draw(st.integers(0, sum(map(len, parts)) - 1))


@pytest.mark.parametrize("is_accelerator", [False, True])
@given(
    scores_and_count(st.one_of(st.sampled_from(SPECIAL), st.floats(width=32))),
    st.sampled_from([1, 2, 3, 7, 1 << 18]),
)
@settings(deadline=None, max_examples=150)
def test_the_lowest_scores_are_pruned_and_of_equal_ones_the_last(
    mask_of_lowest, pretend_accelerator, is_accelerator, case, chunk
):
    tensors, num_pruned = case
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(selection, "CHUNK", chunk))
        if is_accelerator:
            stack.enter_context(pretend_accelerator())
        masks = select(tensors, num_pruned)
    assert_equal(masks, mask_of_lowest(tensors, num_pruned))


@pytest.mark.parametrize("is_accelerator", [False, True])
@given(scores_and_count(st.sampled_from([0.0, 1e-45, 0.5, 1.0, 2.0, math.inf, math.nan])))
@settings(deadline=None, max_examples=100)
def test_without_sign_bits_the_short_way_selects_the_same(
    mask_of_lowest, pretend_accelerator, is_accelerator, case
):
    tensors, num_pruned = [scores.abs() for scores in case[0]], case[1]
    with pretend_accelerator() if is_accelerator else ExitStack():
        masks = select(tensors, num_pruned, is_signed=False)
    assert_equal(masks, mask_of_lowest(tensors, num_pruned))


@pytest.mark.parametrize(
    ("scores", "num_pruned", "kept"),
    [
        ([3, 1, 2], 0, [1, 1, 1]),
        ([3, 1, 2], 1, [1, 0, 1]),
        ([3, 1, 2], 2, [1, 0, 0]),
        ([5, 5, 5, 5], 1, [1, 1, 1, 0]),
        ([5, 5, 5, 5], 3, [1, 0, 0, 0]),
        ([1, 0, 1, 0, 1], 1, [1, 1, 1, 0, 1]),
        ([1, 0, 1, 0, 1], 3, [1, 0, 1, 0, 0]),
        ([0.0, -0.0, 0.0], 2, [1, 0, 0]),
        ([-0.0, 0.0, -0.0], 1, [1, 1, 0]),
        ([-3, -1, -2], 1, [0, 1, 1]),
        ([-1, 0, 1], 2, [0, 0, 1]),
        ([math.nan, 1, math.inf], 1, [1, 0, 1]),
        ([MINUS_NAN, math.inf, 1], 2, [1, 0, 0]),
        ([-math.inf, -1e-45, 1e-45], 2, [0, 0, 1]),
        ([65536.0, 65536.0078125], 1, [0, 1]),  # neighbours in fp32
    ],
)
def test_selections_by_hand(scores, num_pruned, kept):
    (mask,) = select([torch.tensor(scores, dtype=torch.float32)], num_pruned)
    assert mask.int().tolist() == kept


def test_ties_are_counted_on_from_one_tensor_to_the_next():
    masks = select([torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]), torch.tensor([1.0])], 2)
    assert [m.int().tolist() for m in masks] == [[1, 1], [1, 0], [0]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sparsity", [0.8, 0.6, 0.4, 0.2])
def test_a_plateau_of_80_percent_zeros_can_be_cut_anywhere(dtype, sparsity):
    scores = torch.arange(-800.0, 200.0).clamp_min(0).to(dtype)[torch.randperm(1000)]
    (mask,) = select([scores], round(sparsity * 1000))
    assert (~mask).sum() == round(sparsity * 1000)
    assert mask[scores != 0].all()


def test_keys_order_as_the_scores_do():
    rising = [-math.inf, -2.0, -1.0, -1e-45, 0.0, 1e-45, 1.0, 2.0, math.inf, math.nan]
    keys = order_keys(torch.tensor(rising)).tolist()
    assert keys == sorted(set(keys))


def test_zeros_of_both_signs_and_nans_of_both_signs_are_equal():
    zero, minus_zero, nan, minus_nan = order_keys(
        torch.tensor([0.0, -0.0, math.nan, MINUS_NAN])
    ).tolist()
    assert zero == minus_zero
    assert nan == minus_nan


@pytest.mark.parametrize("is_signed", [False, True])
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, 0x7F800001])  # a CPU's, CUDA's, the least
def test_every_nan_ranks_above_infinity_and_below_the_key_that_protects(bits, is_signed):
    scores = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
    assert scores.isnan().all()
    key = order_keys(scores, is_signed=is_signed)
    infinity = order_keys(torch.tensor([math.inf]), is_signed=is_signed)
    assert infinity < key < HIGHEST_KEY
    assert key == order_keys(torch.tensor([math.nan]), is_signed=is_signed)
    assert scores.isnan().all()


@pytest.mark.parametrize("is_signed", [False, True])
def test_scores_that_share_their_memory_have_keys(is_signed):
    scores = torch.tensor(2.0).expand(3, 2)
    assert order_keys(scores, is_signed=is_signed).unique().numel() == 1


def test_keys_follow_the_logical_order_of_a_transposed_tensor():
    scores = torch.tensor([[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]).t()
    assert order_keys(scores).argsort().tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("num_bins", [DIGITS, DIGITS + 1, 5, 1])
def test_both_histograms_count_the_same(num_bins):
    digits = torch.randint(0, num_bins, (5000,), dtype=torch.int32)
    digits = torch.cat([digits, torch.tensor([0, num_bins - 1], dtype=torch.int32)])
    slow = [0] * num_bins
    for digit in digits.tolist():
        slow[digit] += 1
    assert selection._histogram(digits, num_bins).tolist() == slow
    assert selection._histogram_without_wait(digits, num_bins).tolist() == slow


def test_the_histogram_without_wait_is_exact_beyond_the_integers_of_fp32():
    num_entries = (1 << 24) + 3
    counts = selection._histogram_without_wait(torch.ones(num_entries, dtype=torch.int32), 4)
    assert counts.tolist() == [0, num_entries, 0, 0]


@pytest.mark.parametrize("is_accelerator", [False, True])
def test_a_large_selection_is_exact(pretend_accelerator, is_accelerator):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(size, generator=generator) for size in (300_000, 5, 270_001)]
    num_pruned = 456_789
    with pretend_accelerator() if is_accelerator else ExitStack():
        masks = torch.cat(select(tensors, num_pruned))
    order = torch.cat(tensors).argsort()
    expected = torch.ones(len(order), dtype=torch.bool)
    expected[order[:num_pruned]] = False
    different = torch.cat(tensors)[masks != expected]
    assert len(different.unique()) <= len(different) // 2  # only equal scores may be swapped
    assert (~masks).sum() == num_pruned
