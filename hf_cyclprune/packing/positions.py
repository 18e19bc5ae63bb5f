"""The kept elements of a weight, and where they are among its zeros.

FORMAT.md specifies how both are stored. The functions that read check every count.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_cyclprune.packing.entropy import Bytes, chunks, deflate, inflate, read_stream, write_stream
from hf_cyclprune.packing.errors import check

Bits = NDArray[np.unsignedinteger[Any]]
"""Floating-point numbers of 16 or 32 bits as unsigned integers."""
Places = Iterator[tuple[int, slice | NDArray[np.intp]]]
"""Yields the number of the next kept elements, and their indices in the weight."""

ALL, GAPS, BITMASK = range(3)
_SKIP = 255


def split(kept: Bits) -> tuple[Bytes, bytes]:
    """Return the exponents of the elements, and the section with their other bits."""
    is_wide = kept.itemsize == 4
    exponents = np.empty(kept.size, np.uint8)
    signs = np.empty(kept.size, np.uint8)
    low = np.empty(kept.size if is_wide else 0, "<u2")
    for chunk in chunks(kept.size):
        high = (kept[chunk] >> 16).astype(np.uint16) if is_wide else kept[chunk]
        exponents[chunk] = high >> 7  # the sign is cut off
        signs[chunk] = (high >> 8 & 0x80) | (high & 0x7F)
        if is_wide:
            low[chunk] = kept[chunk]
    return exponents, signs.tobytes() + low.tobytes()


def place(exponents: Bytes, rest: memoryview, places: Places, values: Bits) -> None:
    """Join the elements that `split` was given, and write them to their places in `values`."""
    size, done = exponents.size, 0
    signs = np.frombuffer(rest, np.int8, size)
    low = np.frombuffer(rest, "<u2", size, size) if values.itemsize == 4 else None
    for number, indices in places:
        check(done + number <= size, "there are more positions than elements")
        part = slice(done, done + number)
        values[indices] = _join(exponents[part], signs[part], None if low is None else low[part])
        done += number
    check(done == size, f"there are {done} positions for {size} elements")


def _join(exponents: Bytes, signs: NDArray[np.int8], low: Bits | None) -> Bits:
    high = signs.astype(np.int16).view(np.uint16)
    high &= 0x807F  # the sign has spread over the place of the exponent
    shifted = exponents.astype(np.uint16)
    shifted <<= 7
    high |= shifted
    if low is None:
        return high
    whole = high.astype(np.uint32)
    whole <<= 16
    whole |= low
    return whole


def code_positions(is_kept: NDArray[np.bool_], num_kept: int) -> tuple[int, bytes]:
    """Return the shorter form of the positions, a bitmask or gaps, and their section."""
    bitmask = write_stream(np.packbits(is_kept, bitorder="little"))
    gaps = deflate(_find_gaps(is_kept)) if num_kept <= is_kept.size // 2 else None
    return (BITMASK, bitmask) if gaps is None or len(bitmask) <= len(gaps) else (GAPS, gaps)


def _find_gaps(is_kept: NDArray[np.bool_]) -> Bytes:
    coded, last = [], -1
    for chunk in chunks(is_kept.size):
        places = np.flatnonzero(is_kept[chunk]) + chunk.start
        gaps = np.diff(places, prepend=last) - 1
        num_skips = gaps // _SKIP
        symbols = np.full(gaps.size + int(num_skips.sum()), _SKIP, np.uint8)
        symbols[np.arange(gaps.size) + np.cumsum(num_skips)] = gaps % _SKIP
        coded.append(symbols)
        last = int(places[-1]) if places.size else last
    return np.concatenate(coded)


def read_positions(form: int, coded: memoryview, num_kept: int, size: int) -> Places:
    """Return the places of the kept elements of a weight with `size` elements."""
    return {ALL: _read_all, GAPS: _read_gaps, BITMASK: _read_bits}[form](coded, num_kept, size)


def _read_all(coded: memoryview, num_kept: int, size: int) -> Places:
    check(num_kept == size and not len(coded), "not all elements are there")
    yield from ((chunk.stop - chunk.start, chunk) for chunk in chunks(size))


def _read_gaps(coded: memoryview, num_kept: int, size: int) -> Places:
    symbols = inflate(coded, num_kept + size // _SKIP, "gap")
    last = -1
    for chunk in chunks(symbols.size):
        is_element = symbols[chunk] != _SKIP
        places = symbols[chunk].astype(np.int64)
        places += is_element
        places[0] += last
        np.cumsum(places, out=places)
        last = int(places[-1])
        if not is_element.all():
            places = places[is_element]
        check(last < size, "a position is beyond the end")
        yield places.size, places


def _read_bits(coded: memoryview, num_kept: int, size: int) -> Places:
    packed = read_stream(coded, (size + 7) // 8, "bitmask")
    is_clean = not size % 8 or not packed[-1] >> size % 8
    check(is_clean, "there are bits beyond the end of the bitmask")
    for chunk in chunks(size):
        bits = packed[chunk.start // 8 : (chunk.stop + 7) // 8]
        is_kept = np.unpackbits(bits, count=chunk.stop - chunk.start, bitorder="little")
        places = np.flatnonzero(is_kept.view(np.bool_))  # 4 times faster than a mask as index
        places += chunk.start
        yield places.size, places
