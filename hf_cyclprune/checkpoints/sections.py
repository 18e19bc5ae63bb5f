"""The sections of a packed weight: kept elements and their positions <-> bytes.

`codec` specifies them. All counts are checked while reading, and no stream is inflated further than
it must be.
"""

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_cyclprune.checkpoints.errors import PackedError

_SKIP = 255
_CHUNK = 1 << 17  # elements at a time, to stay in the cache
MOST = 0.9
"""What is coded must save a tenth, or it is not worth the time to read it."""

_MAX_LEVELS = 8
_LATER = 3  # the digit of an exponent that a later level tells

Bytes = NDArray[np.uint8]


def check(is_right: bool, message: str) -> None:
    """Raise a PackedError with the message unless it is right."""
    if not is_right:
        raise PackedError(message)


def split(kept: NDArray[Any]) -> tuple[Bytes, bytes]:
    """Exponents of the elements, which are 16 or 32 bits, and the rest as it is stored."""
    is_wide = kept.itemsize == 4
    exponents = np.empty(kept.size, np.uint8)
    signs = np.empty(kept.size, np.uint8)
    low = np.empty(kept.size if is_wide else 0, "<u2")
    for part in _parts(kept.size):
        high = (kept[part] >> 16).astype(np.uint16) if is_wide else kept[part]
        exponents[part] = high >> 7  # the sign is cut off
        signs[part] = (high >> 8 & 0x80) | (high & 0x7F)
        if is_wide:
            low[part] = kept[part]
    return exponents, signs.tobytes() + low.tobytes()


class Kept:
    """The kept elements of a weight: the inverse of `split`, a part at a time.

    Args:
        exponents: of all of them.
        rest: what `split` returned beside the exponents.
        bits: the type of the elements as unsigned integers.
    """

    def __init__(
        self, exponents: Bytes, rest: memoryview, bits: type[np.unsignedinteger[Any]]
    ) -> None:
        self.size = exponents.size
        self._exponents = exponents
        self._signs = np.frombuffer(rest, np.int8, self.size)
        is_wide = np.dtype(bits).itemsize == 4
        self._low = np.frombuffer(rest, "<u2", self.size, self.size) if is_wide else None

    def part(self, start: int, stop: int) -> NDArray[Any]:
        """Elements `start` to `stop`."""
        high = self._signs[start:stop].astype(np.int16).view(np.uint16)
        high &= 0x807F  # the sign has spread over the place of the exponent
        exponents = self._exponents[start:stop].astype(np.uint16)
        exponents <<= 7
        high |= exponents
        if self._low is None:
            return high
        whole = high.astype(np.uint32)
        whole <<= 16
        whole |= self._low[start:stop]
        return whole

    def place_all(self, values: NDArray[Any]) -> None:
        """Write them one after the other."""
        for part in _parts(self.size):
            values[part] = self.part(part.start, part.stop)


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
    for part in _parts(values.size):
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
        return _read(streams[0], size, "exponents")
    digits = _read(streams[0], -(-size // 4), "exponents")
    is_clean = size % 4 == 0 or not digits[-1] >> 2 * (size % 4)
    check(is_clean, "digits beyond the last exponent")
    later = next(value for value in range(4) if value not in tables[0])  # not a value here
    exponents = _look_up(np.append(tables[0], np.uint8(later)), digits)[:size]
    num_later = sum(int(np.count_nonzero(exponents[part] == later)) for part in _parts(size))
    check(num_later <= size / 2, "a level that leaves more than half of the exponents")
    rest = _decode_levels(tables[1:], streams[1:], num_later)
    done = 0
    for part in _parts(size) if num_later else ():
        places = _find(exponents[part] == later)
        exponents[part][places] = rest[done : done + places.size]
        done += places.size
    return exponents


def _find(is_it: NDArray[np.bool_]) -> NDArray[np.intp]:
    """`np.flatnonzero`, but also fast where some hundredths are True.

    numpy's loop for more than a tenth is up to three times faster than the one for less.
    """
    num_found = int(np.count_nonzero(is_it))
    if not 0.015 < num_found / is_it.size <= 0.1:
        return np.flatnonzero(is_it)
    more = np.ones(is_it.size // 8, np.bool_)
    return np.flatnonzero(np.concatenate((is_it, more)))[:num_found]


def _look_up(table: Bytes, digits: Bytes) -> Bytes:
    """The values (4,) that the digits in base 4 in each byte name, one after the other."""
    rows = table[np.arange(256)[:, None] >> np.arange(0, 8, 2) & 3]
    words = rows.view(np.uint32)[:, 0]  # four at a time
    found = np.empty(digits.size, np.uint32)
    for part in _parts(digits.size):
        np.take(words, digits[part], out=found[part], mode="clip")
    return found.view(np.uint8)


def find_gaps(is_kept: NDArray[np.bool_]) -> Bytes:
    """Zeros before each kept element, as the bytes of the format."""
    coded, last = [], -1
    for part in _parts(is_kept.size):
        places = np.flatnonzero(is_kept[part]) + part.start
        gaps = np.diff(places, prepend=last) - 1
        num_skips = gaps // _SKIP
        symbols = np.full(gaps.size + int(num_skips.sum()), _SKIP, np.uint8)
        symbols[np.arange(gaps.size) + np.cumsum(num_skips)] = gaps % _SKIP
        coded.append(symbols)
        last = int(places[-1]) if places.size else last
    return np.concatenate(coded) if coded else np.empty(0, np.uint8)


def place_gaps(coded: memoryview, kept: Kept, values: NDArray[Any]) -> None:
    """Write the kept elements where a section of gaps says."""
    symbols = _inflate(coded, kept.size + values.size // _SKIP, "gaps")
    position, done = -1, 0
    for part in _parts(symbols.size):
        chunk = symbols[part]
        is_element = chunk != _SKIP
        places = chunk.astype(np.int64)
        places += is_element
        places[0] += position
        np.cumsum(places, out=places)
        position = int(places[-1])
        if not is_element.all():
            places = places[is_element]
        check(position < values.size, "a position beyond the end")
        check(done + places.size <= kept.size, "more positions than elements")
        values[places] = kept.part(done, done + places.size)
        done += places.size
    check(done == kept.size, f"{done} positions for {kept.size} elements")


def place_bits(coded: memoryview, kept: Kept, values: NDArray[Any]) -> None:
    """Write the kept elements where a section with a bitmask says."""
    packed = _read(coded, (values.size + 7) // 8, "bitmask")
    last_bits = values.size % 8
    check(not last_bits or not packed[-1] >> last_bits, "bits beyond the end of the bitmask")
    done = 0
    for part in _parts(values.size):
        bits = packed[part.start // 8 : (part.stop + 7) // 8]
        is_kept = np.unpackbits(bits, count=part.stop - part.start, bitorder="little")
        places = _find(is_kept.view(np.bool_))  # 4 times faster than by the mask
        check(done + places.size <= kept.size, "more positions than elements")
        values[part][places] = kept.part(done, done + places.size)
        done += places.size
    check(done == kept.size, f"{done} positions for {kept.size} elements")


def _parts(size: int) -> Iterator[slice]:
    return (slice(start, min(start + _CHUNK, size)) for start in range(0, size, _CHUNK))


def deflate(data: Bytes) -> bytes:
    """Huffman codes alone: there is nothing to match in noise."""
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    return coder.compress(data.data) + coder.flush()


def to_stream(data: Bytes) -> bytes:
    """Deflated if that saves enough, or as it is: the length tells which."""
    coded = deflate(data)
    return coded if len(coded) <= MOST * data.size else data.tobytes()


def _read(data: memoryview, size: int, what: str) -> Bytes:
    """The `size` bytes of a stream that is deflated unless it has this length."""
    if len(data) == size:
        return np.frombuffer(data, np.uint8)
    content = _inflate(data, size, what)
    check(content.size == size, f"{content.size} bytes of {what} instead of {size}")
    return content


def _inflate(data: memoryview, most: int, what: str) -> Bytes:
    """Never more than `most` bytes, which no valid stream exceeds."""
    coder = zlib.decompressobj(-15)
    content = coder.decompress(data, most + 1)
    check(len(content) <= most and coder.eof, f"the {what} are longer than they can be, or cut")
    check(not coder.unused_data, f"something follows the {what}")
    return np.frombuffer(content, np.uint8)
