"""The sections of a packed weight: kept elements and their positions <-> bytes.

`codec` specifies them. All counts are checked while reading, and no stream is inflated further than
it must be.
"""

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_cyclprune.checkpoints.errors import PackedError

_SKIP = 255
_CHUNK = 1 << 18  # elements at a time, to stay in the cache

Bytes = NDArray[np.uint8]


def check(is_right: bool, message: str) -> None:
    """Raise a PackedError with the message unless it is right."""
    if not is_right:
        raise PackedError(message)


def split(kept: NDArray[Any]) -> tuple[Bytes, bytes]:
    """High bytes of the rotated elements, and the other ones as they are stored."""
    is_wide = kept.itemsize == 4
    exponents = np.empty(kept.size, np.uint8)
    low = np.empty(kept.size, "<u2" if is_wide else np.uint8)
    third = np.empty(kept.size if is_wide else 0, np.uint8)
    last = 8 * kept.itemsize - 1
    for part in _parts(kept.size):
        rotated = (kept[part] << 1) | (kept[part] >> last)
        exponents[part] = rotated >> (last - 7)
        low[part] = rotated.astype(low.dtype)  # the low bits
        if is_wide:
            third[part] = (rotated >> 16).astype(np.uint8)
    return exponents, low.tobytes() + third.tobytes()


def join(exponents: Bytes, rest: memoryview, bits: type[np.unsignedinteger[Any]]) -> NDArray[Any]:
    """The inverse of `split`, for elements of the type `bits`."""
    size = exponents.size
    kept = np.empty(size, bits)
    is_wide = kept.itemsize == 4
    low = np.frombuffer(rest, "<u2" if is_wide else np.uint8, size)
    third = np.frombuffer(rest, np.uint8, size, 2 * size) if is_wide else None
    last = 8 * kept.itemsize - 1
    for part in _parts(size):
        rotated = exponents[part].astype(bits)
        rotated <<= last - 7
        rotated |= low[part]
        if third is not None:
            rotated |= third[part].astype(bits) << 16
        np.left_shift(rotated, last, out=kept[part])
        rotated >>= 1
        kept[part] |= rotated
    return kept


def code_exponents(exponents: Bytes) -> bytes:
    """The section of the exponents."""
    if not exponents.size:
        return b""
    symbols = np.flatnonzero(np.bincount(exponents, minlength=256)).astype(np.uint8)
    index = np.zeros(256, np.uint8)
    index[symbols] = np.arange(symbols.size)
    k = _digits_in_a_byte(symbols.size)
    digits = np.zeros(-(-exponents.size // k) * k, np.uint8)
    digits[: exponents.size] = index[exponents]
    packed = np.zeros(digits.size // k, np.uint8)
    for place in range(k):
        packed += digits[place::k] * np.uint8(symbols.size**place)
    return bytes([symbols.size - 1]) + symbols.tobytes() + deflate(packed)


def decode_exponents(coded: memoryview, size: int) -> Bytes:
    """The inverse of `code_exponents`, for `size` elements."""
    if not size:
        check(not len(coded), "exponents of no element")
        return np.empty(0, np.uint8)
    num_symbols = coded[0] + 1 if len(coded) else 0
    symbols = np.frombuffer(coded[1 : 1 + num_symbols], np.uint8)
    check(0 < num_symbols == symbols.size, "no table of exponents")
    check(bool((np.diff(symbols.astype(int)) > 0).all()), "the exponents are not ascending")
    k = _digits_in_a_byte(num_symbols)
    num_bytes = -(-size // k)
    packed = _inflate(coded[1 + num_symbols :], num_bytes, "exponents")
    check(packed.size == num_bytes, f"{packed.size} bytes of exponents for {size} elements")
    check(int(packed.max()) < num_symbols**k, "an exponent that is not in the table")
    is_clean = size % k == 0 or int(packed[-1]) < num_symbols ** (size % k)
    check(is_clean, "digits beyond the last exponent")
    places = num_symbols ** np.arange(k)  # (K,)
    table = symbols[np.arange(256)[:, None] // places % num_symbols]  # (256, K)
    return _look_up(table, packed)[:size]


def _look_up(table: Bytes, index: Bytes) -> Bytes:
    """The rows of a table (256, K) that the bytes of `index` name, one after the other.

    Rows are moved as words, which is several times faster than byte by byte.
    """
    k = table.shape[1]
    if k == 1:
        return np.frombuffer(index.tobytes().translate(table.tobytes()), np.uint8)
    width = 1 << (k - 1).bit_length()
    rows = np.zeros((256, width), np.uint8)
    rows[:, :k] = table
    words = rows.view(f"u{width}")[:, 0]
    found = np.empty((index.size, k), np.uint8)
    for part in _parts(index.size):
        found[part] = words[index[part]].view(np.uint8).reshape(-1, width)[:, :k]
    return found.reshape(-1)


def _digits_in_a_byte(num_symbols: int) -> int:
    """The most digits in base `num_symbols` that a byte holds."""
    return next((k for k in (8, 5, 4, 3, 2) if num_symbols**k <= 256), 1)


def find_gaps(is_kept: NDArray[np.bool_]) -> Bytes:
    """Zeros before each kept element, as the bytes of the format."""
    gaps = np.diff(np.flatnonzero(is_kept), prepend=-1) - 1
    num_skips = gaps // _SKIP
    symbols = np.full(gaps.size + int(num_skips.sum()), _SKIP, np.uint8)
    symbols[np.arange(gaps.size) + np.cumsum(num_skips)] = gaps % _SKIP
    return symbols


def place_gaps(coded: memoryview, kept: NDArray[Any], values: NDArray[Any]) -> None:
    """Write the kept elements where a section of gaps says."""
    symbols = _inflate(coded, kept.size + values.size // _SKIP, "gaps")
    position, done = -1, 0
    for part in _parts(symbols.size):
        chunk = symbols[part]
        is_element = chunk != _SKIP
        ends = np.cumsum(chunk + is_element.astype(np.int64))
        ends += position
        position = int(ends[-1])
        places = ends[is_element]
        check(position < values.size, "a position beyond the end")
        check(done + places.size <= kept.size, "more positions than elements")
        values[places] = kept[done : done + places.size]
        done += places.size
    check(done == kept.size, f"{done} positions for {kept.size} elements")


def place_bits(coded: memoryview, kept: NDArray[Any], values: NDArray[Any]) -> None:
    """Write the kept elements where a section with a bitmask says."""
    size = (values.size + 7) // 8
    packed = _inflate(coded, size, "bitmask")
    check(packed.size == size, f"a bitmask of {packed.size} bytes for {values.size} elements")
    last_bits = values.size % 8
    check(not last_bits or not packed[-1] >> last_bits, "bits beyond the end of the bitmask")
    done = 0
    for part in _parts(values.size):
        bits = packed[part.start // 8 : (part.stop + 7) // 8]
        is_kept = np.unpackbits(bits, count=part.stop - part.start, bitorder="little")
        places = np.flatnonzero(is_kept.view(np.bool_))  # 4 times faster than by the mask
        check(done + places.size <= kept.size, "more positions than elements")
        values[part][places] = kept[done : done + places.size]
        done += places.size
    check(done == kept.size, f"{done} positions for {kept.size} elements")


def _parts(size: int) -> Iterator[slice]:
    return (slice(start, min(start + _CHUNK, size)) for start in range(0, size, _CHUNK))


def deflate(data: Bytes) -> bytes:
    """Huffman codes alone: there is nothing to match in noise."""
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    return coder.compress(data.data) + coder.flush()


def _inflate(data: memoryview, most: int, what: str) -> Bytes:
    """Never more than `most` bytes, which no valid stream exceeds."""
    coder = zlib.decompressobj(-15)
    content = coder.decompress(data, most + 1)
    check(len(content) <= most and coder.eof, f"the {what} are longer than they can be, or cut")
    check(not coder.unused_data, f"something follows the {what}")
    return np.frombuffer(content, np.uint8)
