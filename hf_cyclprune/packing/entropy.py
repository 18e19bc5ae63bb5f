"""The exponents of a packed weight's kept elements <-> bytes, in levels.

`codec` specifies them. All counts are checked while reading.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hf_cyclprune.packing.chunks import Bytes, find, parts
from hf_cyclprune.packing.errors import check
from hf_cyclprune.packing.streams import read_stream, to_stream

_MAX_LEVELS = 8
_LATER = 3  # the digit of an exponent that a later level tells


def code_exponents(exponents: Bytes) -> bytes:
    """The section of the exponents."""
    if not exponents.size:
        return b""
    tables, left = b"", exponents
    streams: list[Bytes] = []
    few = max(32, exponents.size / 32)  # for which a level is not worth the calls that read it
    while left.size > few:  # five times at most: each level leaves half or less
        counts = _count(left)
        table = np.argsort(-counts, kind="stable")[:_LATER].astype(np.uint8)
        if counts[table].sum() < left.size / 2:
            break  # the format has no such level, which would hardly shorten what is left
        digit_of = np.full(256, _LATER, np.uint8)
        digit_of[table] = range(_LATER)
        digits = np.zeros(-(-left.size // 4) * 4, np.uint8)
        digits[: left.size] = digit_of[left]
        left = left[digits[: left.size] == _LATER]
        digits[::4] |= digits[1::4] << 2 | digits[2::4] << 4 | digits[3::4] << 6
        streams.append(digits[::4].copy())
        tables += table.tobytes()
    num_levels = len(streams)
    coded = [to_stream(stream) for stream in (*streams, left)]
    lengths = np.array([len(stream) for stream in coded], "<u8")
    return b"".join([bytes([num_levels]), tables, lengths.tobytes(), *coded])


def _count(values: Bytes) -> NDArray[np.intp]:
    """How often each of the 256 values occurs; `np.bincount` would take 8 bytes for each."""
    counts = np.zeros(256, np.intp)
    for part in parts(values.size):
        counts += np.bincount(values[part], minlength=256)
    return counts


def decode_exponents(coded: memoryview, size: int) -> Bytes:
    """The inverse of `code_exponents`, for `size` elements."""
    if not size:
        check(not len(coded), "exponents of no element")
        return np.empty(0, np.uint8)
    num_levels = coded[0] if len(coded) else 0
    check(num_levels <= _MAX_LEVELS, f"{num_levels} levels of exponents")
    start = 1 + _LATER * num_levels
    end = start + 8 * (num_levels + 1)
    check(len(coded) >= end, "no table of exponents")
    lengths = [int.from_bytes(coded[i : i + 8], "little") for i in range(start, end, 8)]
    check(len(coded) == end + sum(lengths), "streams of exponents of another length")
    tables = np.frombuffer(coded, np.uint8, _LATER * num_levels, 1).reshape(-1, _LATER)
    streams = []
    for length in lengths:
        streams.append(coded[end : end + length])
        end += length
    return _decode_levels(tables, streams, size)


def _decode_levels(tables: Bytes, streams: Sequence[memoryview], size: int) -> Bytes:
    """Exponents of the first of these levels, for which the tables are rows of (L, 3)."""
    if not len(tables):
        return read_stream(streams[0], size, "exponents")
    digits = read_stream(streams[0], -(-size // 4), "exponents")
    is_clean = size % 4 == 0 or not digits[-1] >> 2 * (size % 4)
    check(is_clean, "digits beyond the last exponent")
    later = next(value for value in range(4) if value not in tables[0])  # not a value here
    exponents = _look_up(np.append(tables[0], np.uint8(later)), digits)[:size]
    num_later = sum(int(np.count_nonzero(exponents[part] == later)) for part in parts(size))
    check(num_later <= size / 2, "a level that leaves more than half of the exponents")
    rest = _decode_levels(tables[1:], streams[1:], num_later)
    done = 0
    for part in parts(size) if num_later else ():
        places = find(exponents[part] == later)
        exponents[part][places] = rest[done : done + places.size]
        done += places.size
    return exponents


def _look_up(table: Bytes, digits: Bytes) -> Bytes:
    """The values (4,) that the digits in base 4 in each byte name, one after the other."""
    rows = table[np.arange(256)[:, None] >> np.arange(0, 8, 2) & 3]
    words = rows.view(np.uint32)[:, 0]  # four at a time
    found = np.empty(digits.size, np.uint32)
    for part in parts(digits.size):
        np.take(words, digits[part], out=found[part], mode="clip")
    return found.view(np.uint8)
