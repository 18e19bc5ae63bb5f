"""The sections of a packed weight: kept elements and their positions <-> bytes.

`codec` specifies them. All counts are checked while reading.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_cyclprune.packing.chunks import Bytes, find, parts
from hf_cyclprune.packing.errors import check
from hf_cyclprune.packing.streams import inflate, read_stream

_SKIP = 255


def split(kept: NDArray[Any]) -> tuple[Bytes, bytes]:
    """Exponents of the elements, which are 16 or 32 bits, and the rest as it is stored."""
    is_wide = kept.itemsize == 4
    exponents = np.empty(kept.size, np.uint8)
    signs = np.empty(kept.size, np.uint8)
    low = np.empty(kept.size if is_wide else 0, "<u2")
    for part in parts(kept.size):
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


def find_gaps(is_kept: NDArray[np.bool_]) -> Bytes:
    """Zeros before each kept element, as the bytes of the format."""
    coded, last = [], -1
    for part in parts(is_kept.size):
        places = np.flatnonzero(is_kept[part]) + part.start
        gaps = np.diff(places, prepend=last) - 1
        num_skips = gaps // _SKIP
        symbols = np.full(gaps.size + int(num_skips.sum()), _SKIP, np.uint8)
        symbols[np.arange(gaps.size) + np.cumsum(num_skips)] = gaps % _SKIP
        coded.append(symbols)
        last = int(places[-1]) if places.size else last
    return np.concatenate(coded) if coded else np.empty(0, np.uint8)


def place_all(coded: memoryview, kept: Kept, values: NDArray[Any]) -> None:
    """Write the kept elements one after the other: there are no others, and no section."""
    check(kept.size == values.size and not len(coded), "not all elements are there")
    for part in parts(kept.size):
        values[part] = kept.part(part.start, part.stop)


def place_gaps(coded: memoryview, kept: Kept, values: NDArray[Any]) -> None:
    """Write the kept elements where a section of gaps says."""
    symbols = inflate(coded, kept.size + values.size // _SKIP, "gaps")
    position, done = -1, 0
    for part in parts(symbols.size):
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
    packed = read_stream(coded, (values.size + 7) // 8, "bitmask")
    last_bits = values.size % 8
    check(not last_bits or not packed[-1] >> last_bits, "bits beyond the end of the bitmask")
    done = 0
    for part in parts(values.size):
        bits = packed[part.start // 8 : (part.stop + 7) // 8]
        is_kept = np.unpackbits(bits, count=part.stop - part.start, bitorder="little")
        places = find(is_kept.view(np.bool_))  # 4 times faster than by the mask
        check(done + places.size <= kept.size, "more positions than elements")
        values[part][places] = kept.part(done, done + places.size)
        done += places.size
    check(done == kept.size, f"{done} positions for {kept.size} elements")
