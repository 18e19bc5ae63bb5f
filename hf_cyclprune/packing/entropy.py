"""Bytes in about as much space as their entropy: deflated streams, and exponents in levels.

FORMAT.md specifies both. The functions that read check every count, and inflate no more bytes than
the header of the blob allows.
"""

import zlib
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from hf_cyclprune.packing.errors import check

Bytes = NDArray[np.uint8]

MAX_RATIO = 0.9
"""Coding must save a tenth of the bytes, or it is not worth the time to read them."""
_CHUNK = 1 << 17  # elements
_MAX_LEVELS = 8
_LATER = 3  # the digit of an exponent that this level leaves to the next one


def chunks(size: int) -> Iterator[slice]:
    """Return slices that cover `size` elements in order, each short enough for the cache."""
    return (slice(start, min(start + _CHUNK, size)) for start in range(0, size, _CHUNK))


def deflate(data: Bytes) -> bytes:
    """Return a raw deflate stream with Huffman codes alone: noise has no repetitions to match."""
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    return coder.compress(data.data) + coder.flush()


def inflate(data: memoryview, max_size: int, kind: str) -> Bytes:
    """Return the bytes in a raw deflate stream, of which no valid one has more than `max_size`.

    `kind` names the stream in an error.
    """
    coder = zlib.decompressobj(-15)
    inflated = coder.decompress(data, max_size + 1)
    is_whole = len(inflated) <= max_size and coder.eof
    check(is_whole, f"its {kind} stream is longer than it can be, or cut short")
    check(not coder.unused_data, f"there are bytes after its {kind} stream")
    return np.frombuffer(inflated, np.uint8)


def write_stream(data: Bytes) -> bytes:
    """Return the bytes, deflated if that saves enough; a reader can tell by the length."""
    deflated = deflate(data)
    return deflated if len(deflated) <= MAX_RATIO * data.size else data.tobytes()


def read_stream(data: memoryview, size: int, kind: str) -> Bytes:
    """Return the `size` bytes that `write_stream` was given."""
    if len(data) == size:
        return np.frombuffer(data, np.uint8)
    inflated = inflate(data, size, kind)
    check(inflated.size == size, f"its {kind} stream has {inflated.size} bytes instead of {size}")
    return inflated


def code_exponents(exponents: Bytes) -> bytes:
    """Return the section of a blob that holds the exponents of its kept elements."""
    if not exponents.size:
        return b""
    streams: list[Bytes] = []
    tables, left = b"", exponents
    num_few = max(32, exponents.size / 32)  # not worth the calls that read a level
    while left.size > num_few and (table := _find_table(left)) is not None:
        digit_of = np.full(256, _LATER, np.uint8)
        digit_of[table] = range(_LATER)
        digits = np.zeros(-(-left.size // 4) * 4, np.uint8)
        digits[: left.size] = digit_of[left]
        left = left[digits[: left.size] == _LATER]  # at most half: there are five levels at most
        tables += table.tobytes()
        digits[::4] |= digits[1::4] << 2 | digits[2::4] << 4 | digits[3::4] << 6
        streams.append(digits[::4].copy())
    coded = [write_stream(stream) for stream in (*streams, left)]
    lengths = np.array([len(stream) for stream in coded], "<u8")
    return b"".join([bytes([len(streams)]), tables, lengths.tobytes(), *coded])


def _find_table(exponents: Bytes) -> Bytes | None:
    """Return the three most frequent values, or None if they are less than half of all."""
    # In chunks, since `np.bincount` takes 8 bytes for each element.
    parts = [np.bincount(exponents[chunk], minlength=256) for chunk in chunks(exponents.size)]
    counts = np.sum(parts, axis=0)
    table = np.argsort(-counts, kind="stable")[:_LATER]
    return table.astype(np.uint8) if counts[table].sum() >= exponents.size / 2 else None


def decode_exponents(coded: memoryview, size: int) -> Bytes:
    """Return the `size` exponents that `code_exponents` was given."""
    if not size:
        check(not len(coded), "it has exponents but no elements")
        return np.empty(0, np.uint8)
    num_levels = coded[0] if len(coded) else 0
    check(num_levels <= _MAX_LEVELS, f"it has {num_levels} levels of exponents")
    start = 1 + _LATER * num_levels
    end = start + 8 * (num_levels + 1)
    check(len(coded) >= end, "the tables of its exponents are cut short")
    lengths = [int.from_bytes(coded[i : i + 8], "little") for i in range(start, end, 8)]
    check(len(coded) == end + sum(lengths), "its exponent streams do not fill their section")
    tables = np.frombuffer(coded, np.uint8, _LATER * num_levels, 1).reshape(-1, _LATER)
    streams = [coded[start:end] for start, end in pairwise(accumulate([end, *lengths]))]
    return _decode_levels(tables, streams, size)


def _decode_levels(tables: Bytes, streams: Sequence[memoryview], size: int) -> Bytes:
    """Return the `size` exponents that the first of these levels is about.

    Each of the L levels has a table and a stream; the last stream holds the exponents left.
    """
    if not len(tables):
        return read_stream(streams[0], size, "exponent")
    digits = read_stream(streams[0], -(-size // 4), "exponent")
    is_clean = size % 4 == 0 or not digits[-1] >> 2 * (size % 4)
    check(is_clean, "there are digits after that of the last exponent")
    later = next(value for value in range(4) if value not in tables[0])  # marks what is left
    exponents = _look_up(np.append(tables[0], np.uint8(later)), digits)[:size]
    num_left = sum(int(np.count_nonzero(exponents[chunk] == later)) for chunk in chunks(size))
    check(num_left <= size / 2, "a level leaves more than half of the exponents")
    left = _decode_levels(tables[1:], streams[1:], num_left)
    done = 0
    for chunk in chunks(size) if num_left else ():
        places = np.flatnonzero(exponents[chunk] == later)
        exponents[chunk][places] = left[done : done + places.size]
        done += places.size
    return exponents


def _look_up(table: Bytes, digits: Bytes) -> Bytes:
    """Return the table's value for each digit, four digits to a byte."""
    rows = table[np.arange(256)[:, None] >> np.arange(0, 8, 2) & 3]
    words = rows.view(np.uint32)[:, 0]  # the four values of a byte, looked up at once
    found = np.empty(digits.size, np.uint32)
    for chunk in chunks(digits.size):
        np.take(words, digits[chunk], out=found[chunk], mode="clip")
    return found.view(np.uint8)
