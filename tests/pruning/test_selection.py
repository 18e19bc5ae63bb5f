import math
from contextlib import ExitStack
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_cyclprune.engines.ranks import Ranks
from hf_cyclprune.pruning import digits
from hf_cyclprune.pruning.selection import (
    HIGHEST_KEY,
    find_cut,
    order_keys,
    prune_lowest_,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
MINUS_NAN = math.copysign(math.nan, -1.0)
SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, math.inf, -math.inf, math.nan, MINUS_NAN]


def select(tensors, num_pruned, *, is_signed=True):
    """The masks of scores that are ranked together, as a pruner computes them."""
    keys = [order_keys(scores, is_signed=is_signed) for scores in tensors]
    before = [key.clone() for key in keys]
    masks = [torch.rand(scores.shape) < 0.5 for scores in tensors]  # these are overwritten
    prune_lowest_((mask.view(-1) for mask in masks), lambda: iter(keys), num_pruned)
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
    st.sampled_from([1, 2, 3, 7, 8, 1 << 18]),
)
@settings(deadline=None, max_examples=150)
def test_the_lowest_scores_are_pruned_and_of_equal_ones_the_last(
    mask_of_lowest, pretend_accelerator, is_accelerator, case, chunk
):
    tensors, num_pruned = case
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(digits, "CHUNK", chunk))
        stack.enter_context(mock.patch.object(digits, "BATCH", chunk))
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


@pytest.mark.parametrize("is_accelerator", [False, True])
def test_what_ranks_add_up_does_not_grow_with_the_weights(pretend_accelerator, is_accelerator):
    class Recorded(Ranks):
        num_bytes = 0

        def sum_(self, counts):
            self.num_bytes += counts.numel() * counts.itemsize
            return super().sum_(counts)

    found = set()
    for size in (10, 100_000):
        ranks, keys = Recorded(), torch.arange(size, dtype=torch.int32)
        with pretend_accelerator() if is_accelerator else ExitStack():
            cut = find_cut(lambda keys=keys: [keys], size // 2, ranks)
        assert cut.key == size // 2
        found.add(ranks.num_bytes)
    assert found == {8 * (2 << 16) if not is_accelerator else 8 * (2048 + 2048 + 1024)}


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
