import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch

from hf_cyclprune.packing.blob import decode, encode, read_head
from tests.packing.blobs import (
    ALL,
    CHUNK,
    FLOATS,
    assert_refused,
    assert_round_trip,
    bits_of,
    build,
    from_bits,
    levels,
    raw,
)
from tests.packing.reader import read_blob


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


def test_a_table_may_hold_any_values():
    """Values that the reader uses as marks are possible, too."""
    for table in ((0, 1, 2), (3, 2, 1), (0, 0, 0), (1, 3, 255)):
        coded = levels([table], b"\xe4\x03", b"\x81\x02")
        weight = decode(build((5,), 5, b"", coded, bytes(15), form=ALL), "w", (5,))
        assert (bits_of(weight) >> 23 & 255).tolist() == [*table, 0x81, 2]
