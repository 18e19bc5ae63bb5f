"""One floating-point tensor <-> bytes, exact, near the entropy of what it holds.

Zeros cost only their positions; of every other element the exponent is coded, since the exponents
of trained weights carry 2 to 3 bits, and the rest, which is noise, is stored as it is. Only +0.0
counts as zero: -0.0, NaN and Inf are kept bit for bit.

The format, version 1. All integers are little-endian and unsigned.

    offset  bytes     what
    0       4         "HFCP"
    4       1         version, 1
    5       1         dtype: 1 float32, 2 bfloat16, 3 float16
    6       1         how the positions of the kept elements are given: 0 all elements are kept,
                      1 gaps, 2 bitmask
    7       1         number of dimensions d
    8       4         crc32 of all bytes but these four
    12      8         number of kept elements n
    20      8 d       dimensions; their product is the number of elements N
    20+8d   8         length P of the positions
    28+8d   8         length E of the exponents
    36+8d   P         positions: nothing (all), or a raw deflate stream (RFC 1951)
                        gaps: one byte for each kept element in order, the number of zeros since
                          the last one; 255 stands for 255 zeros and no element
                        bitmask: bit i % 8 of byte i // 8 is 1 if element i is kept, (N + 7) // 8
                          bytes, the last bits 0
            E         exponents: the high byte of each kept element after its bits were rotated left
                      by one, which puts the sign last. One byte S - 1, then the S byte values that
                      occur, ascending, then a raw deflate stream in which a byte holds k of them in
                      order, as digits in base S, the first one least significant; a digit is an
                      index into the S values. k is the largest number with S ** k <= 256, and 8 for
                      S = 1; digits after the last are 0. For n = 0: nothing
            n (w-1)   the other bytes of the rotated elements of width w bytes: for float32 all low
                      halves of 16 bits, then all third bytes; else all low bytes

Nothing follows. The reader knows the shape that the model expects, or at least how large it may be,
before it takes memory, inflates no further than it must, and checks every count.
"""

import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

VERSION = 1
_MAGIC = b"HFCP"
_HEAD = struct.Struct("<4sBBBBI")
_ALL, _GAPS, _BITMASK = range(3)
_SKIP = 255
_MAX_DIMENSIONS = 8
_MOST_OF_DENSE = 0.9  # coded exponents of a tensor without zeros must save a tenth
_CHUNK = 1 << 18  # elements at a time, to stay in the cache

Bytes = NDArray[np.uint8]


class PackedError(ValueError):
    """A packed checkpoint that is damaged, of another model or of a newer format."""


@dataclass(frozen=True)
class _Type:
    """A floating-point type as unsigned integers."""

    code: int
    bits: type[np.unsignedinteger[Any]]
    torch_bits: torch.dtype

    @property
    def width(self) -> int:
        """Bytes of an element."""
        return int(np.dtype(self.bits).itemsize)


_TYPES = {
    torch.float32: _Type(1, np.uint32, torch.int32),
    torch.bfloat16: _Type(2, np.uint16, torch.int16),
    torch.float16: _Type(3, np.uint16, torch.int16),
}
_DTYPES = {kind.code: dtype for dtype, kind in _TYPES.items()}


def encode(tensor: Tensor) -> Bytes | None:
    """The smallest blob that gives the tensor back; None if it is smaller as it is.

    None also for other types than float32, bfloat16 and float16.

    >>> half_empty = torch.tensor([0.0, 1.5] * 500)
    >>> blob = encode(half_empty)
    >>> blob.size < 0.45 * 4 * half_empty.numel()
    True
    >>> torch.equal(decode(blob, "weight", half_empty.shape), half_empty)
    True
    """
    kind = _TYPES.get(tensor.dtype)
    if kind is None or tensor.ndim > _MAX_DIMENSIONS:
        return None
    values = _to_bits(tensor, kind)
    limit = values.nbytes
    num_kept = int(np.count_nonzero(values))
    blobs = [blob for blob in _forms(values, num_kept, tensor.shape, kind) if len(blob) < limit]
    if not blobs:
        return None
    blob = min(blobs, key=len)
    blob[8:12] = _checksum(memoryview(blob)).to_bytes(4, "little")
    return np.frombuffer(blob, np.uint8)


def _forms(
    values: NDArray[Any], num_kept: int, shape: Sequence[int], kind: _Type
) -> Iterator[bytearray]:
    """The forms that may be the smallest, without their checksum."""
    if num_kept > values.size // 2:  # with fewer the zeros' exponents alone cost more than gaps
        dense = _assemble(kind, _ALL, shape, b"", values)
        if len(dense) <= _MOST_OF_DENSE * values.nbytes:
            yield dense
    if num_kept < values.size:
        is_kept = values != 0
        positions = {_BITMASK: _deflate(np.packbits(is_kept, bitorder="little"))}
        if num_kept <= values.size // 2:
            positions[_GAPS] = _deflate(_find_gaps(is_kept))
        form = min(positions, key=lambda form: len(positions[form]))
        yield _assemble(kind, form, shape, positions[form], values[is_kept])


def decode(
    blob: Bytes, name: str, shape: Sequence[int] | None = None, most: int | None = None
) -> Tensor:
    """The tensor in a blob, on the CPU.

    Args:
        blob: what `encode` returned.  # (bytes,) uint8
        name: of the weight, for errors.
        shape: what the model expects; a blob of another one is refused.
        most: elements that it may have, where the shape is not known.

    Raises:
        PackedError: says what is wrong with the blob of `name`.
    """
    head = read_head(blob, name, shape, most)
    try:
        return _decode(head)
    except (PackedError, zlib.error) as error:
        raise _explain(name, error) from error


def read_head(
    blob: Bytes, name: str, shape: Sequence[int] | None = None, most: int | None = None
) -> "Head":
    """What a blob says of itself, checked; arguments and errors as for `decode`."""
    assert shape is not None or most is not None, "or a lying header could ask for any memory"
    try:
        head = _parse(memoryview(np.ascontiguousarray(blob).data))
        if shape is not None:
            _check(head.shape == tuple(shape), f"shape {head.shape}; the model has {tuple(shape)}")
        fits = most is None or max(head.size, *head.shape, 0) <= most
        _check(fits, f"shape {head.shape}; the whole model has {most} weights")
    except (PackedError, struct.error) as error:
        raise _explain(name, error) from error
    return head


def _explain(name: str, error: Exception) -> PackedError:
    return PackedError(
        f"the packed weight '{name}' must be intact and of this model; got: {error}. Get the file "
        "again."
    )


@dataclass(frozen=True)
class Head:
    """The header of a blob, and its sections."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    form: int
    num_kept: int
    positions: memoryview
    exponents: memoryview
    rest: memoryview

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def _parse(blob: memoryview) -> Head:
    magic, version, code, form, ndim, crc = _HEAD.unpack_from(blob)
    _check(magic == _MAGIC, "it does not begin as a packed weight does")
    _check(version == VERSION, f"format version {version}; this reader knows {VERSION}")
    _check(code in _DTYPES, f"unknown dtype {code}")
    _check(form in (_ALL, _GAPS, _BITMASK), f"unknown form {form}")
    _check(ndim <= _MAX_DIMENSIONS, f"{ndim} dimensions")
    facts = struct.Struct(f"<{ndim + 3}Q")
    num_kept, *dims, num_positions, num_exponents = facts.unpack_from(blob, _HEAD.size)
    dtype = _DTYPES[code]
    body = blob[_HEAD.size + facts.size :]
    length = num_positions + num_exponents + num_kept * (dtype.itemsize - 1)
    _check(len(body) == length, f"{len(body)} bytes of content; its header says {length}")
    _check(_checksum(blob) == crc, "the checksum does not fit: it is damaged")
    total = math.prod(dims)
    is_possible = total > 0 or math.prod(max(dim, 1) for dim in dims) < 1 << 63
    _check(is_possible, f"shape {tuple(dims)}, which no tensor has")
    _check(num_kept <= total, f"{num_kept} kept elements of {total}")
    positions, body = body[:num_positions], body[num_positions:]
    exponents, rest = body[:num_exponents], body[num_exponents:]
    return Head(dtype, tuple(dims), form, num_kept, positions, exponents, rest)


def _decode(head: Head) -> Tensor:
    kind = _TYPES[head.dtype]
    kept = _join(_decode_exponents(head.exponents, head.num_kept), head.rest, kind)
    if head.form == _ALL:
        is_whole = head.num_kept == head.size and not len(head.positions)
        _check(is_whole, "not all elements are there")
        values = kept
    else:
        values = np.zeros(head.size, kind.bits)
        place = _place_gaps if head.form == _GAPS else _place_bits
        place(head.positions, kept, values)
    signed = torch.from_numpy(values.view(f"i{kind.width}"))
    return signed.view(head.dtype).reshape(head.shape)


def _checksum(blob: memoryview) -> int:
    return zlib.crc32(blob[12:], zlib.crc32(blob[:8]))


def _check(is_right: bool, message: str) -> None:
    if not is_right:
        raise PackedError(message)


def _to_bits(tensor: Tensor, kind: _Type) -> NDArray[Any]:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(kind.torch_bits).numpy().view(kind.bits)


def _assemble(
    kind: _Type, form: int, shape: Sequence[int], positions: bytes, kept: NDArray[Any]
) -> bytearray:
    exponents, rest = _split(kept, kind)
    coded = _code_exponents(exponents)
    facts = struct.pack(f"<{len(shape) + 3}Q", kept.size, *shape, len(positions), len(coded))
    head = _HEAD.pack(_MAGIC, VERSION, kind.code, form, len(shape), 0)
    return bytearray().join((head, facts, positions, coded, rest))


def _split(kept: NDArray[Any], kind: _Type) -> tuple[Bytes, bytes]:
    """High bytes of the rotated elements, and the other ones as they are stored."""
    exponents = np.empty(kept.size, np.uint8)
    low = np.empty(kept.size, "<u2" if kind.width == 4 else np.uint8)
    third = np.empty(kept.size if kind.width == 4 else 0, np.uint8)
    last = 8 * kind.width - 1
    for part in _parts(kept.size):
        rotated = (kept[part] << 1) | (kept[part] >> last)
        exponents[part] = rotated >> (last - 7)
        low[part] = rotated.astype(low.dtype)  # the low bits
        if kind.width == 4:
            third[part] = (rotated >> 16).astype(np.uint8)
    return exponents, low.tobytes() + third.tobytes()


def _join(exponents: Bytes, rest: memoryview, kind: _Type) -> NDArray[Any]:
    """The inverse of `_split`."""
    size = exponents.size
    low = np.frombuffer(rest, "<u2" if kind.width == 4 else np.uint8, size)
    third = np.frombuffer(rest, np.uint8, size, 2 * size) if kind.width == 4 else None
    kept = np.empty(size, kind.bits)
    last = 8 * kind.width - 1
    for part in _parts(size):
        rotated = exponents[part].astype(kind.bits)
        rotated <<= last - 7
        rotated |= low[part]
        if third is not None:
            rotated |= third[part].astype(kind.bits) << 16
        np.left_shift(rotated, last, out=kept[part])
        rotated >>= 1
        kept[part] |= rotated
    return kept


def _code_exponents(exponents: Bytes) -> bytes:
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
    return bytes([symbols.size - 1]) + symbols.tobytes() + _deflate(packed)


def _decode_exponents(coded: memoryview, size: int) -> Bytes:
    if not size:
        _check(not len(coded), "exponents of no element")
        return np.empty(0, np.uint8)
    num_symbols = coded[0] + 1 if len(coded) else 0
    symbols = np.frombuffer(coded[1 : 1 + num_symbols], np.uint8)
    _check(0 < num_symbols == symbols.size, "no table of exponents")
    _check(bool((np.diff(symbols.astype(int)) > 0).all()), "the exponents are not ascending")
    k = _digits_in_a_byte(num_symbols)
    num_bytes = -(-size // k)
    packed = _inflate(coded[1 + num_symbols :], num_bytes, "exponents")
    _check(packed.size == num_bytes, f"{packed.size} bytes of exponents for {size} elements")
    _check(int(packed.max()) < num_symbols**k, "an exponent that is not in the table")
    is_clean = size % k == 0 or int(packed[-1]) < num_symbols ** (size % k)
    _check(is_clean, "digits beyond the last exponent")
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


def _find_gaps(is_kept: NDArray[np.bool_]) -> Bytes:
    """Zeros before each kept element, as the bytes of the format."""
    gaps = np.diff(np.flatnonzero(is_kept), prepend=-1) - 1
    num_skips = gaps // _SKIP
    symbols = np.full(gaps.size + int(num_skips.sum()), _SKIP, np.uint8)
    symbols[np.arange(gaps.size) + np.cumsum(num_skips)] = gaps % _SKIP
    return symbols


def _place_gaps(coded: memoryview, kept: NDArray[Any], values: NDArray[Any]) -> None:
    symbols = _inflate(coded, kept.size + values.size // _SKIP, "gaps")
    position, done = -1, 0
    for part in _parts(symbols.size):
        chunk = symbols[part]
        is_element = chunk != _SKIP
        ends = np.cumsum(chunk + is_element.astype(np.int64))
        ends += position
        position = int(ends[-1])
        places = ends[is_element]
        _check(position < values.size, "a position beyond the end")
        _check(done + places.size <= kept.size, "more positions than elements")
        values[places] = kept[done : done + places.size]
        done += places.size
    _check(done == kept.size, f"{done} positions for {kept.size} elements")


def _place_bits(coded: memoryview, kept: NDArray[Any], values: NDArray[Any]) -> None:
    size = (values.size + 7) // 8
    packed = _inflate(coded, size, "bitmask")
    _check(packed.size == size, f"a bitmask of {packed.size} bytes for {values.size} elements")
    last_bits = values.size % 8
    _check(not last_bits or not packed[-1] >> last_bits, "bits beyond the end of the bitmask")
    done = 0
    for part in _parts(values.size):
        bits = packed[part.start // 8 : (part.stop + 7) // 8]
        is_kept = np.unpackbits(bits, count=part.stop - part.start, bitorder="little")
        places = np.flatnonzero(is_kept.view(np.bool_))  # 4 times faster than by the mask
        _check(done + places.size <= kept.size, "more positions than elements")
        values[part][places] = kept[done : done + places.size]
        done += places.size
    _check(done == kept.size, f"{done} positions for {kept.size} elements")


def _parts(size: int) -> Iterator[slice]:
    return (slice(start, min(start + _CHUNK, size)) for start in range(0, size, _CHUNK))


def _deflate(data: Bytes) -> bytes:
    """Huffman codes alone: there is nothing to match in noise."""
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    return coder.compress(data.data) + coder.flush()


def _inflate(data: memoryview, most: int, what: str) -> Bytes:
    """Never more than `most` bytes, which no valid stream exceeds."""
    coder = zlib.decompressobj(-15)
    content = coder.decompress(data, most + 1)
    _check(len(content) <= most and coder.eof, f"the {what} are longer than they can be, or cut")
    _check(not coder.unused_data, f"something follows the {what}")
    return np.frombuffer(content, np.uint8)
