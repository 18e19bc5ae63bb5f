import math
import runpy
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_cyclprune.packing.blob import decode, encode, read_head
from hf_cyclprune.packing.errors import PackedError
from tests.packing.reader import DTYPES, read_blob

FUZZ = Path(__file__).parents[2] / "examples" / "fuzz_packed.py"
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
CHUNK = 1 << 17
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
SPECIAL = {  # -0.0, Inf, -Inf, a quiet and a signaling NaN with payload, smallest denormal, largest
    torch.float32: [1 << 31, 0x7F80 << 16, 0xFF80 << 16, 0x7FC01234, 0xFF812345, 1, 0x7F7FFFFF],
    torch.bfloat16: [1 << 15, 0x7F80, 0xFF80, 0x7FC5, 0xFF81, 1, 0x7F7F],
    torch.float16: [1 << 15, 0x7C00, 0xFC00, 0x7E05, 0xFC01, 1, 0x7BFF],
}
ALL, GAPS, BITMASK = range(3)


def from_bits(bits, dtype):
    width = dtype.itemsize
    return torch.from_numpy(np.array(bits, f"u{width}").view(f"i{width}")).view(dtype)


def bits_of(tensor):
    return tensor.contiguous().view(-1).view(BITS[tensor.dtype]).reshape(tensor.shape)


def normal(*shape, dtype=torch.float32, seed=0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.05).to(dtype)


def prune(weight, sparsity):
    """Set the smallest elements to +0.0."""
    flat = weight.clone().reshape(-1)
    flat[flat.abs().float().argsort()[: round(sparsity * flat.numel())]] = 0
    return flat.reshape(weight.shape)


def prune_2_of_4(weight):
    groups = weight.reshape(-1, 4)
    pruned = groups.abs().float().argsort(1)[:, :2]
    return groups.scatter(1, pruned, 0).reshape(weight.shape)


def assert_round_trip(tensor):
    """Encode the tensor, decode it with both readers, and return the blob."""
    blob = encode(tensor)
    assert blob is not None
    assert blob.dtype == np.uint8
    assert blob.nbytes < tensor.numel() * tensor.element_size()
    back = decode(blob, "w", tensor.shape)
    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    assert torch.equal(bits_of(back), bits_of(tensor))
    name, width = DTYPES[blob[5]]
    shape, content = tuple(tensor.shape), bits_of(tensor).numpy().tobytes()
    assert read_blob(blob.tobytes()) == (name, shape, content)
    assert width == tensor.element_size()
    return blob


def form_of(blob):
    return int(blob[6])


# The tensor comes back, bit for bit.


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


@pytest.mark.parametrize("gap", [0, 1, 253, 254, 255, 256, 509, 510, 511, 764, 765, 766, 5000])
@pytest.mark.parametrize("tail", [0, 1, 254, 255, 256, 510, 3000])
def test_gaps_around_multiples_of_the_skip_come_back(gap, tail):
    zeros = [0.0] * gap
    weight = torch.tensor([*zeros, 1.5, *zeros, 2.5, 3.5, *zeros, 4.5] + [0.0] * (tail + 300))
    blob = assert_round_trip(weight)
    positions = read_head(blob, "w", weight.shape).positions
    if form_of(blob) == GAPS:
        content = zlib.decompress(positions, -15)
        assert len(content) == 4 + 3 * (gap // 255)
        assert content[-1] == gap % 255


@pytest.mark.parametrize("num_skips", [-1, 0, 1])
def test_skips_across_the_border_of_a_chunk_come_back(num_skips):
    """The first 2^17 bytes of gaps end in a run of 255s, and an element follows the run."""
    size = CHUNK - 200 + num_skips
    weight = torch.zeros(size + 255 * 400 + 1)
    weight[:size] = normal(size).abs() + 1
    weight[-1] = 1
    gaps = raw(bytes(size) + b"\xff" * 400 + b"\0")
    blob = build(weight.shape, size + 1, gaps, *split(weight[weight != 0]))
    assert torch.equal(decode(blob, "w", weight.shape), weight)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("num_values", [1, 2, 3, 4, 5, 6, 7, 15, 16, 17, 100, 255, 256])
@pytest.mark.parametrize("extra", range(5))
def test_any_number_of_distinct_exponents_comes_back(num_values, extra, dtype):
    shift = 8 * dtype.itemsize - 9
    bits = [value << shift or 1 << shift + 8 for value in range(256)]
    kept = bits[256 - num_values :] * 2 + bits[-1:] * extra
    weight = from_bits(sum(([b] + [0] * 9 for b in kept), [0] * 300), dtype)
    assert_round_trip(weight)


def levels_of(blob, shape):
    """Return the number of levels and the lengths of all streams."""
    coded = read_head(blob, "w", shape).exponents
    return coded[0], struct.unpack_from(f"<{coded[0] + 1}Q", coded, 1 + 3 * coded[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.001, 0.01, 0.02, 0.06, 0.099, 0.11, 0.3])
def test_exponents_left_to_later_levels_come_back(share, dtype):
    """The weight takes three chunks, and the shares left vary from few to many."""
    size = 2 * CHUNK + 13
    generator = np.random.default_rng(0)
    values = 2.0 ** generator.integers(0, 3, size)
    left = generator.random(size) < share
    values[left] = 2.0 ** generator.integers(3, 9, int(left.sum()))
    values *= 1 + generator.random(size)  # noise, which no later level takes
    weight = torch.from_numpy(values).to(dtype)
    blob = encode(weight)
    assert torch.equal(bits_of(decode(blob, "w", (size,))), bits_of(weight))
    assert (levels_of(blob, (size,))[0] > 1) == (share > 1 / 32)


@pytest.mark.parametrize(
    ("shares", "is_deflated"),
    [
        ((0.9, 0.05, 0.05), True),
        ((0.4, 0.2, 0.2, 0.2), False),  # would save 4%
        ((0.25, 0.25, 0.25, 0.25), False),
    ],
)
def test_a_stream_is_deflated_where_that_saves_a_tenth(shares, is_deflated):
    size = 40_000
    generator = np.random.default_rng(0)
    exponents = generator.choice(len(shares), size, p=shares)
    weight = torch.from_numpy(2.0**exponents * (1 + generator.random(size))).float()
    num_levels, lengths = levels_of(assert_round_trip(weight), (size,))
    assert num_levels >= 1
    assert (lengths[0] < size // 4) == is_deflated


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_levels_end_where_a_thirty_second_is_left(dtype):
    """In this weight ten levels are possible, each of which leaves half of the exponents."""
    exponents = np.concatenate([np.repeat(range(3 * i, 3 * i + 3), 2 << 13 - i) for i in range(10)])
    weight = from_bits((exponents + 100) << 8 * dtype.itemsize - 9, dtype)
    assert levels_of(assert_round_trip(weight), weight.shape)[0] == 5


def test_a_level_that_would_take_less_than_half_is_left_out():
    generator = np.random.default_rng(0)
    weight = torch.from_numpy(2.0 ** generator.integers(0, 8, 10_000)).bfloat16()
    assert levels_of(assert_round_trip(weight), weight.shape)[0] == 0


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


# Its size.


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_form_is_the_one_that_costs_least(dtype):
    weight = normal(100, 100, dtype=dtype)
    blob = encode(weight)
    assert blob is None or form_of(blob) == ALL
    assert form_of(encode(prune(weight, 0.9))) == GAPS
    assert form_of(encode(prune_2_of_4(weight))) == BITMASK
    assert form_of(encode(torch.zeros_like(weight))) == GAPS
    block = torch.zeros_like(weight)
    block[:50] = weight[:50]
    block[:50][block[:50] == 0] = 1
    assert form_of(encode(block)) in (GAPS, BITMASK)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_two_forms_that_are_worth_it_the_smaller_is_taken(dtype):
    weight = normal(100, 100, dtype=dtype)
    weight[weight == 0] = 1
    weight[50, 50] = 0
    assert form_of(encode(weight)) == ALL
    assert form_of(encode(prune(weight, 0.3))) == BITMASK


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


# What is damaged is refused.


def raw(data):
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    return coder.compress(bytes(data)) + coder.flush()


def exponents(values):
    """Return a section of exponents without levels."""
    return levels([], bytes(values))


def levels(tables, *streams):
    """Put a section of exponents together from tables and streams."""
    lengths = struct.pack(f"<{len(streams)}Q", *map(len, streams))
    head = bytes([len(tables)]) + b"".join(bytes(table) for table in tables)
    return head + lengths + b"".join(streams)


def split(weight):
    """Return the sections with the exponents and the other bits of float32 elements."""
    bits = bits_of(weight).numpy().view("<u4")
    signs = (bits >> 24 & 128 | bits >> 16 & 127).astype(np.uint8)
    rest = signs.tobytes() + bits.astype("<u2").tobytes()
    return exponents((bits >> 23 & 255).tolist()), rest


def build(
    shape, kept=0, positions=None, coded=b"", rest=b"", *, form=GAPS, code=1, version=1, **lies
):
    """Put a blob together from its parts, with the right checksum."""
    positions = raw(b"") if positions is None else positions
    sizes = (lies.get("num_positions", len(positions)), lies.get("num_exponents", len(coded)))
    head = struct.pack("<4sBBBBI", b"HFCP", version, code, form, lies.get("ndim", len(shape)), 0)
    numbers = struct.pack(f"<{len(shape) + 3}Q", kept, *shape, *sizes)
    return seal(head + numbers + positions + coded + rest)


def seal(blob):
    blob = bytearray(blob)
    blob[8:12] = zlib.crc32(bytes(blob[:8] + blob[12:])).to_bytes(4, "little")
    return np.frombuffer(bytes(blob), np.uint8)


def assert_refused(blob, shape=(2, 32), match="", **options):
    options = options or {"shape": shape}
    message = rf"'layer\.weight' is damaged.*{match}.*Download the file again"
    with pytest.raises(PackedError, match=message):
        decode(blob, "layer.weight", **options)


@pytest.fixture(scope="module")
def small():
    """A weight and its blob for each form; the encoder would not pack such small weights."""
    dense, pruned, groups = normal(2, 32), prune(normal(2, 32), 0.75), prune_2_of_4(normal(2, 32))
    gaps = raw(np.diff(np.flatnonzero(pruned), prepend=-1).astype(np.uint8) - 1)
    bits = np.packbits(groups != 0, bitorder="little").tobytes()
    return [
        (dense, build((2, 32), 64, b"", *split(dense.flatten()), form=ALL)),
        (pruned, build((2, 32), 16, gaps, *split(pruned[pruned != 0]))),
        (groups, build((2, 32), 32, bits, *split(groups[groups != 0]), form=BITMASK)),
    ]


def test_the_small_blobs_have_all_forms(small):
    assert [form_of(blob) for _, blob in small] == [ALL, GAPS, BITMASK]
    for weight, blob in small:
        assert torch.equal(decode(blob, "w", weight.shape), weight)


@pytest.mark.parametrize("form", [ALL, GAPS, BITMASK])
def test_every_change_of_a_byte_is_refused(small, form):
    _, blob = small[form]
    for place in range(blob.size):
        for flip in (1, 16, 128, 255):
            changed = blob.copy()
            changed[place] ^= flip
            assert_refused(changed)


@pytest.mark.parametrize("form", [ALL, GAPS, BITMASK])
def test_every_truncation_and_anything_appended_is_refused(small, form):
    _, blob = small[form]
    for size in range(blob.size):
        assert_refused(blob[:size])
        assert_refused(seal(blob[:size].tobytes()) if size >= 12 else blob[:size])
    for tail in (b"\0", b"\xff" * 8, blob.tobytes()):
        assert_refused(np.frombuffer(blob.tobytes() + tail, np.uint8), match="bytes of content")
        assert_refused(seal(blob.tobytes() + tail), match="bytes of content")


@pytest.mark.parametrize("form", [ALL, GAPS, BITMASK])
@pytest.mark.parametrize("field", range(5))  # kept, 2 dimensions, positions, exponents
def test_a_header_that_lies_is_refused_without_memory(small, form, field):
    weight, blob = small[form]
    (truth,) = struct.unpack_from("<Q", blob, 12 + 8 * field)
    lies = {0, 1, truth + 1, abs(truth - 1), 2**16, 2**31, 2**32, 2**40, 2**63 - 1, 2**63}
    tracemalloc.start()
    for lie in (lies | {2**64 - 1}) - {truth}:
        changed = bytearray(blob.tobytes())
        struct.pack_into("<Q", changed, 12 + 8 * field, lie)
        assert_refused(seal(changed))
        assert_refused(seal(changed), max_size=weight.numel() - 1)
        try:
            decode(seal(changed), "w", max_size=weight.numel())
        except PackedError:
            continue
        assert lie <= weight.numel()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_lengths_that_only_sum_up_are_refused(small):
    _, blob = small[GAPS]
    changed = bytearray(blob.tobytes())
    num_positions, num_exponents = struct.unpack_from("<2Q", changed, 36)
    for shift in (-3, -1, 1, 3, num_exponents, -num_positions):
        struct.pack_into("<2Q", changed, 36, num_positions + shift, num_exponents - shift)
        assert_refused(seal(changed))


@pytest.fixture(scope="module")
def bomb():
    """A stream of 1 MB that inflates to 1 GB."""
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = bytes(1 << 24)
    return b"".join(coder.compress(zeros) for _ in range(64)) + coder.flush()


@pytest.mark.parametrize("section", ["gap", "bitmask", "exponent"])
def test_a_stream_that_inflates_to_a_gigabyte_is_refused_without_memory(bomb, section):
    parts = {
        "gap": ((2, 32), 1, bomb, exponents([1]), bytes(3)),
        "bitmask": ((2, 32), 1, bomb, exponents([1]), bytes(3)),
        "exponent": ((2, 32), 1, raw(b"\0"), levels([], bomb), bytes(3)),
    }[section]
    blob = build(*parts, form=BITMASK if section == "bitmask" else GAPS)
    tracemalloc.start()
    assert_refused(blob, match=f"its {section} stream is longer")
    assert_refused(blob, max_size=64, match=f"its {section} stream is longer")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20  # the blob, which is copied a few times


@pytest.mark.parametrize("shape", [(2, 64), (64,), (2, 32, 1), (32, 2), (), (0,)])
def test_the_shape_of_another_model_is_refused(small, shape):
    for _, blob in small:
        assert_refused(blob, shape, match=r"shape is \(2, 32\), and the model's is")
        with pytest.raises(PackedError, match="'w'"):
            read_head(blob, "w", shape)


def test_where_the_shape_is_not_known_the_maximum_size_is_respected(small):
    for weight, blob in small:
        assert torch.equal(decode(blob, "w", max_size=64), weight)
        assert read_head(blob, "w", max_size=64).shape == (2, 32)
        assert_refused(blob, max_size=63, match="the whole model has 63 weights")


def test_the_shape_or_the_maximum_size_must_be_known(small):
    with pytest.raises(AssertionError):
        decode(small[0][1], "w")


@pytest.mark.parametrize(
    "dims",
    [(0, 2**63), (2**64 - 1, 0), (2**62, 2**62, 0, 4), (0, 2**40, 2**40), (0, 101)],
)
@pytest.mark.parametrize("form", [ALL, GAPS, BITMASK])
def test_dimensions_too_large_for_a_tensor_are_refused_even_beside_a_zero(dims, form):
    blob = build(dims, form=form, positions=b"" if form == ALL else raw(b""))
    assert_refused(blob, max_size=100)


@pytest.mark.parametrize("dims", [(2**27, 2**27, 2**27, 0), (0, *(2**9,) * 7)])
def test_dimensions_whose_product_beside_a_zero_overflows_are_refused(dims):
    assert_refused(build(dims), max_size=2**28)


def test_dimensions_that_overflow_to_the_right_size_are_refused():
    for dims in [(2**32, 2**32), (2**63, 2), (2**32 + 1, 2**32)]:
        assert_refused(build(dims), max_size=100, match="the whole model has")


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_format_version_is_refused_by_its_number(version):
    assert_refused(build((2, 32), version=version), match=f"version {version}, and this reader")


@pytest.mark.parametrize("code", [0, 4, 255])
def test_an_unknown_dtype_is_refused(code):
    assert_refused(build((2, 32), code=code), match=f"unknown dtype {code}")


@pytest.mark.parametrize("form", [3, 255])
def test_an_unknown_form_is_refused(form):
    assert_refused(build((2, 32), form=form), match=f"unknown form {form}")


@pytest.mark.parametrize("ndim", [9, 255])
def test_too_many_dimensions_are_refused(ndim):
    assert_refused(build((2, 32), ndim=ndim), match="dimensions")
    assert_refused(build((1,) * 9), match="9 dimensions", max_size=100)


@pytest.mark.parametrize("content", [b"", b"HFCP", b"\0" * 100, b"{}" * 50, b"HFCQ" + bytes(60)])
def test_what_is_not_a_blob_is_refused(content):
    assert_refused(np.frombuffer(content, np.uint8))


def parts(weight):
    coded, rest = split(weight)
    return {"coded": coded, "rest": rest}


THREE = torch.tensor([1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("symbols", "match"),
    [
        ([61, 1, 0], "beyond the end"),  # the last one would be at 64
        ([64, 0, 0], "beyond the end"),
        ([255, 0, 0, 0], "longer than|beyond the end"),
        ([0, 0], "2 positions for 3"),
        ([], "0 positions for 3"),
        ([0, 0, 0, 0], "longer than|more positions"),
        ([254, 254, 254], "beyond the end"),
    ],
)
def test_wrong_gaps_are_refused(symbols, match):
    assert_refused(build((2, 32), 3, raw(symbols), **parts(THREE)), match=f"({match})")


def test_the_last_position_may_be_the_last_element():
    blob = build((2, 32), 3, raw([61, 0, 0]), **parts(THREE))
    assert torch.equal(decode(blob, "w", (2, 32)).flatten()[-3:], THREE)
    assert_refused(build((2, 32), 3, raw([61, 0, 1]), **parts(THREE)), match="beyond the end")


@pytest.mark.parametrize(
    "symbols", [[0, 0, 0, 255], [0, 0, 255, 0], [0, 0, 0, 255, 255], [255, 255, 255], [0, 0, 0, 5]]
)
def test_gaps_are_refused_even_where_a_skip_leads_beyond_the_end(symbols):
    assert_refused(build((2, 32), 3, raw(symbols), **parts(THREE)))
    shape = (2, 150)  # with room for one skip
    assert_refused(build(shape, 3, raw([*symbols, 255, 255]), **parts(THREE)), shape)


def test_gaps_are_inflated_no_further_than_their_elements_and_skips_can_take():
    """Three elements of 510 take five bytes at most."""
    for symbols, match in (([0] * 5, "more positions"), ([0] * 6, "longer than")):
        blob = build((2, 255), 3, raw(symbols), **parts(THREE))
        assert_refused(blob, (2, 255), match=match)


@pytest.mark.parametrize(
    ("bitmask", "match"),
    [
        (raw(b"\x07" + bytes(6)), "7 bytes instead of 8"),
        (raw(b"\x07" + bytes(8)), "longer than"),
        (raw(b""), "0 bytes instead of 8"),
        (raw(b"\x07" + bytes(7))[:-1], "cut|invalid|incomplete"),
        (b"\x03" + bytes(7), "2 positions for 3"),
        (raw(b"\x03" + bytes(7)), "2 positions for 3"),
        (bytes(8), "0 positions for 3"),
        (b"\x0f" + bytes(7), "more positions"),
        (b"\xff" * 8, "more positions"),
    ],
)
def test_a_wrong_bitmask_is_refused(bitmask, match):
    blob = build((2, 32), 3, bitmask, **parts(THREE), form=BITMASK)
    assert_refused(blob, match=match)


@pytest.mark.parametrize("size", [57, 60, 63])
def test_bits_beyond_the_end_of_a_bitmask_are_refused(size):
    for bit in range(size, 64):
        bitmask = (7 | 1 << bit).to_bytes(8, "little")
        blob = build((size,), 3, bitmask, **parts(THREE), form=BITMASK)
        assert_refused(blob, (size,), match="bits beyond the end")
    last = (3 | 1 << size - 1).to_bytes(8, "little")
    blob = build((size,), 3, last, **parts(THREE), form=BITMASK)
    assert torch.equal(decode(blob, "w", (size,))[[0, 1, -1]], THREE)


def test_all_elements_must_be_there_where_the_form_says_so():
    for kept, positions in ((2, b""), (3, b"x"), (3, raw(b"\0\0\0"))):
        blob = build((3,), kept, positions, **parts(THREE[:kept]), form=ALL)
        assert_refused(blob, (3,), match="not all elements are there")
    assert_refused(
        build((2,), 3, b"", **parts(THREE), form=ALL), (2,), match="3 kept elements of 2"
    )


@pytest.mark.parametrize(
    ("coded", "match"),
    [
        (b"", "tables of its exponents are cut short"),
        (b"\0", "tables of its exponents are cut short"),
        (b"\2" + bytes(29), "tables of its exponents are cut short"),
        (b"\x09" + bytes(200), "9 levels"),
        (b"\xff" + bytes(200), "255 levels"),
        (levels([], b"\1\2\3") + b"\0", "do not fill"),
        (levels([], b"\1\2\3")[:-1], "do not fill"),
        (levels([], b"\1\2\3")[:1] + b"\xff" * 8 + b"\1\2\3", "do not fill"),
        (levels([], b"\1\2"), "invalid|cut"),
        (levels([], raw(b"\1\2")), "2 bytes instead of 3"),
        (levels([], raw(b"\1\2\3\4")), "longer than"),
        (levels([], raw(b"\1\2\3")[:-1]), "cut|invalid|incomplete"),
        (levels([], raw(b"\1\2\3") + b"\0"), "bytes after its exponent stream"),
        (levels([], zlib.compress(b"\1\2\3")), ""),
        (levels([], b"\xff" * 4), ""),
        (levels([], b""), "cut"),
        (
            levels([(1, 2, 3)], b"\x40", b""),
            "digits after that",
        ),  # a fourth digit of three
        (levels([(1, 2, 3)], b"\x24", b"\7"), "cut|invalid|longer"),  # none of them is left
        (levels([(1, 2, 3)], b"\x13", b""), "cut"),  # one is left
        (levels([(1, 2, 3)], b"\x33", b"\7\7"), "more than half"),
        (levels([(1, 2, 3)], raw(b"\0\0"), b""), "longer than"),
        (levels([(1, 2, 3)] * 2, b"\x13", b"\x04", b""), "digits after that"),
    ],
)
def test_wrong_exponents_are_refused(coded, match):
    blob = build((2, 32), 3, raw([0, 0, 0]), coded, bytes(9))
    assert_refused(blob, match=f"({match})")


def test_no_elements_have_no_exponents():
    assert not decode(build((2, 32)), "w", (2, 32)).any()
    assert_refused(build((2, 32), 0, None, b"\0\1\3\0"), match="exponents but no elements")


def test_levels_of_exponents_are_read():
    """1.0 has the exponent 127. The digits are 0, 3, 0, 3, and 1, 0 in the next level."""
    weight = torch.tensor([1.0, 2.0, 1.0, 4.0])
    for coded in (
        levels([(127, 0, 0), (129, 128, 9)], b"\xcc", b"\x01", b""),
        levels([(127, 0, 0)], b"\xcc", b"\x80\x81"),
    ):
        blob = build((4,), 4, b"", coded, bytes(12), form=ALL)
        assert torch.equal(decode(blob, "w", (4,)), weight)
        assert read_blob(blob.tobytes())[2] == weight.numpy().tobytes()


def test_eight_levels_are_read_and_nine_refused():
    def halving(number):
        """Return a blob whose levels leave half of the exponents, and the last level one."""
        size = 1 << number
        streams = [
            b"\x55" * (m // 8) + b"\xff" * (m // 8) for m in (size >> i for i in range(number - 2))
        ]
        coded = levels([(0, 100 + i, 0) for i in range(number)], *streams, b"\xf5", b"\x0d", b"\7")
        return build((size,), size, b"", coded, bytes(3 * size), form=ALL)

    exponents = bits_of(decode(halving(8), "w", (256,))) >> 23
    times = [128, 64, 32, 16, 8, 4, 2, 1, 1]
    assert np.array_equal(exponents, np.repeat([*range(100, 108), 7], times))
    assert_refused(halving(9), (512,), match="9 levels")


def test_levels_that_leave_more_than_half_are_refused_before_they_take_memory():
    size = 1 << 20
    coded = levels([(0, 1, 2)] * 8, *[raw(b"\xff" * (size // 4))] * 8, raw(bytes(size)))
    blob = build((size,), size, b"", coded, bytes(size), form=ALL, code=2)
    tracemalloc.start()
    assert_refused(blob, (size,), match="leaves more than half")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * size


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("sparsity", [0, 0.5, 0.9])
def test_packing_takes_little_memory_beside_the_weight(sparsity, dtype):
    weight = prune(normal(1 << 21, dtype=dtype), sparsity)
    encode(weight[:5000])  # what is loaded once
    tracemalloc.start()
    encode(weight)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * weight.nbytes


def test_a_table_may_hold_any_values():
    """Values that the reader uses as marks are possible, too."""
    for table in ((0, 1, 2), (3, 2, 1), (0, 0, 0), (1, 3, 255)):
        coded = levels([table], b"\xe4\x03", b"\x81\x02")
        weight = decode(build((5,), 5, b"", coded, bytes(15), form=ALL), "w", (5,))
        assert (bits_of(weight) >> 23 & 255).tolist() == [*table, 0x81, 2]


def test_a_stream_that_is_not_deflate_is_refused():
    for form in (GAPS, BITMASK):
        for stream in (b"", b"\xff" * 20, zlib.compress(bytes(8)), raw(bytes(8)) + b"\0"):
            assert_refused(build((2, 32), 3, stream, **parts(THREE), form=form))


def mutate(blob, changes, fix_crc):
    blob = bytearray(blob.tobytes())
    for kind, place, value in changes:
        place %= len(blob)
        if kind == "set":
            blob[place] = value
        elif kind == "cut" and len(blob) > 40:
            del blob[place:]
        elif kind == "insert":
            blob.insert(place, value)
        if len(blob) < 12:
            blob += bytes(12)
    return seal(blob) if fix_crc else np.frombuffer(bytes(blob), np.uint8)


CHANGE = st.tuples(
    st.sampled_from(["set"] * 4 + ["cut", "insert"]), st.integers(0), st.integers(0, 255)
)


@given(st.sampled_from(range(3)), st.lists(CHANGE, min_size=1, max_size=4), st.booleans())
@settings(deadline=None, max_examples=2000)
def test_a_mutated_blob_is_refused_or_gives_a_tensor_of_the_shape(small, form, changes, fix_crc):
    weight, blob = small[form]
    changed = mutate(blob, changes, fix_crc)
    try:
        back = decode(changed, "w", weight.shape)
    except PackedError:
        return
    assert back.shape == weight.shape
    if not fix_crc:
        assert np.array_equal(changed, blob)


@pytest.mark.parametrize("fix_crc", [False, True])
def test_the_fuzzer_finds_nothing(fix_crc):
    counts = runpy.run_path(str(FUZZ))["fuzz"](num=400, seed=1, fix_crc=fix_crc)
    assert counts.num_rejected + counts.num_same + counts.num_other >= 400
    assert counts.num_rejected > 100
    assert counts.failures == []
    assert fix_crc or counts.num_other == 0
