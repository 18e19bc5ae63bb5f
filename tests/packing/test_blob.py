import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_cyclprune.packing.blob import decode, encode, read_head
from tests.packing.blobs import (
    ALL,
    BITMASK,
    CHUNK,
    FLOATS,
    SPECIAL,
    assert_round_trip,
    bits_of,
    build,
    exponents,
    form_of,
    from_bits,
    normal,
    prune,
    prune_2_of_4,
)
from tests.packing.reader import read_blob


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("sparsity", [0, 0.3, 0.5, 0.8, 0.9, 0.95, 0.97, 0.999, 1])
def test_a_pruned_weight_comes_back_bit_for_bit(sparsity, dtype):
    blob = encode(prune(normal(64, 96, dtype=dtype), sparsity))
    if blob is not None or sparsity >= 0.3:
        assert_round_trip(prune(normal(64, 96, dtype=dtype), sparsity))


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_2_4_pattern_comes_back_and_is_a_bitmask(dtype):
    blob = assert_round_trip(prune_2_of_4(normal(64, 96, dtype=dtype)))
    assert form_of(blob) == BITMASK


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("num_zeros", [0, 3, 40, 300])
def test_signed_zeros_nans_infinities_and_denormals_keep_their_bits(dtype, num_zeros):
    bits = [0] * num_zeros + SPECIAL[dtype] * 60 + [0] * 200 + SPECIAL[dtype] + [0] * num_zeros
    assert_round_trip(from_bits(bits, dtype))


@pytest.mark.parametrize("dtype", FLOATS)
def test_minus_zero_is_an_element_and_not_a_zero(dtype):
    only = torch.full((500,), -0.0, dtype=dtype)
    blob = assert_round_trip(only)
    assert form_of(blob) == ALL
    assert read_head(blob, "w", only.shape).num_kept == 500
    mixed = torch.zeros(500, dtype=dtype)
    mixed[::7] = -0.0
    assert read_head(assert_round_trip(mixed), "w", mixed.shape).num_kept == 72


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "shape", [(200,), (4, 50), (2, 10, 10), (200, 1, 1), (1, 1, 1, 200), (1,) * 7 + (200,)]
)
def test_any_shape_of_up_to_eight_dimensions_comes_back(shape, dtype):
    assert_round_trip(prune(normal(*shape, dtype=dtype), 0.9))


def test_nine_dimensions_are_stored_as_they_are():
    assert encode(torch.zeros((1,) * 8 + (1000,))) is None


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, math.nan])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0), (1, 1)])
def test_empty_tensors_and_single_elements_are_smaller_as_they_are(shape, value):
    assert encode(torch.full(shape, value)) is None


def test_a_blob_of_no_element_or_of_one_without_dimensions_is_read():
    assert decode(build((0, 3)), "w", (0, 3)).shape == (0, 3)
    one = build((), 1, b"", exponents([0x7F]), b"\0\0\0", form=ALL)
    assert torch.equal(decode(one, "w", ()), torch.tensor(1.0))
    assert read_blob(one.tobytes()) == ("F32", (), torch.tensor(1.0).numpy().tobytes())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.5, math.inf])
def test_equal_elements_come_back(value, dtype):
    assert_round_trip(torch.full((40, 30), value, dtype=dtype))


def test_a_zero_weight_of_a_million_elements_takes_almost_nothing():
    assert assert_round_trip(torch.zeros(1000, 1000)).size < 1500


@pytest.mark.parametrize(
    "view",
    [
        lambda w: w.t(),
        lambda w: w[::2, 1::3],
        lambda w: w[5:],
        lambda w: w[:, :1].expand(-1, 50),
        lambda w: w.flip(0),
        lambda w: torch.nn.Parameter(w),
    ],
)
def test_a_view_comes_back_as_what_it_shows(view):
    weight = view(prune(normal(60, 60), 0.9))
    blob = assert_round_trip(weight.detach())
    assert np.array_equal(blob, encode(weight))


def test_encoding_leaves_the_tensor_as_it_was_and_is_the_same_every_time():
    weight = prune(normal(50, 50), 0.8)
    before = weight.clone()
    assert np.array_equal(encode(weight), encode(weight))
    assert torch.equal(weight, before)


def test_what_comes_back_can_be_written_to_and_does_not_hold_the_blob():
    weight = prune(normal(50, 50), 0.8)
    blob = encode(weight)
    back = decode(blob, "w", weight.shape)
    back.fill_(1.0)
    assert torch.equal(decode(blob, "w", weight.shape), weight)
    dense = torch.ones(400)
    decode(encode(dense), "w", dense.shape).fill_(2.0)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64]
)
def test_other_types_are_stored_as_they_are(dtype):
    assert encode(torch.zeros(1000, dtype=dtype)) is None


@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - 7, 2 * CHUNK + 9])
@pytest.mark.parametrize("sparsity", [0, 0.5, 0.97])
def test_a_weight_around_a_multiple_of_the_chunk_comes_back(size, sparsity):
    blob = encode(prune(normal(size), sparsity))
    back = decode(blob, "w", (size,))
    assert torch.equal(bits_of(back), bits_of(prune(normal(size), sparsity)))


@st.composite
def tensors(draw):
    """Draw random bit patterns, often few of them, between runs of zeros."""
    dtype = draw(st.sampled_from(FLOATS))
    width = dtype.itemsize
    pattern = st.one_of(st.integers(0, 2 ** (8 * width) - 1), st.sampled_from(SPECIAL[dtype]))
    run = st.sampled_from([0, 0, 0, 1, 2, 7, 100, 254, 255, 256, 510, 700])
    pieces = draw(st.lists(st.tuples(run, st.lists(pattern, max_size=30)), max_size=20))
    bits = [b for zeros, kept in pieces for b in [0] * zeros + kept]
    bits += [0] * draw(run)
    return from_bits(bits, dtype)


@given(tensors())
@settings(deadline=None, max_examples=300)
def test_random_bits_between_random_runs_of_zeros_come_back(tensor):
    if encode(tensor) is not None:
        assert_round_trip(tensor)


def test_a_blob_as_large_as_the_tensor_is_not_worth_it():
    assert encode(torch.zeros(23, dtype=torch.float16)) is None
    assert encode(torch.zeros(24, dtype=torch.float16)).size == 46


def test_noise_is_stored_as_it_is():
    bits = np.random.default_rng(0).integers(1, 2**32, 10_000, np.uint32)
    assert encode(from_bits(bits, torch.float32)) is None


def test_a_dense_weight_is_packed_only_if_that_saves_a_tenth():
    assert assert_round_trip(normal(400, 400)).size <= 0.9 * 4 * 160_000
    bits = np.random.default_rng(0).integers(1, 2**29, 40_000, np.uint32)  # 5 bits of exponent
    assert encode(from_bits(bits, torch.float32)) is None


def entropy(counts):
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def floor_in_bytes(weight, is_2_of_4):
    """Return the entropy of positions and exponents, plus the other bits of the kept elements."""
    width = weight.element_size()
    bits = bits_of(weight).numpy().reshape(-1).view(f"u{width}")
    kept = bits[bits != 0]
    positions = entropy(np.array([kept.size, bits.size - kept.size]))
    if is_2_of_4:
        positions = math.log2(6) / 4
    exponents = entropy(np.bincount(kept << 1 >> (8 * width - 8) & 255))
    return (bits.size * positions + kept.size * (exponents + 8 * (width - 1))) / 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9, 0.95, 0.97, "2:4"])
def test_a_million_gaussian_weights_take_3_percent_more_than_their_entropy(sparsity, dtype):
    is_2_of_4 = sparsity == "2:4"
    weight = normal(1000, 1000, dtype=dtype)
    weight = prune_2_of_4(weight) if is_2_of_4 else prune(weight, sparsity)
    blob = encode(weight)
    assert torch.equal(bits_of(decode(blob, "w", weight.shape)), bits_of(weight))
    assert blob.size < 1.03 * floor_in_bytes(weight, is_2_of_4)
