import zlib

import pytest
import torch

from hf_cyclprune.packing.blob import decode, encode, read_head
from tests.packing.blobs import (
    ALL,
    BITMASK,
    CHUNK,
    FLOATS,
    GAPS,
    THREE,
    assert_refused,
    assert_round_trip,
    build,
    form_of,
    normal,
    parts,
    prune,
    prune_2_of_4,
    raw,
    split,
)


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


def test_a_stream_that_is_not_deflate_is_refused():
    for form in (GAPS, BITMASK):
        for stream in (b"", b"\xff" * 20, zlib.compress(bytes(8)), raw(bytes(8)) + b"\0"):
            assert_refused(build((2, 32), 3, stream, **parts(THREE), form=form))
