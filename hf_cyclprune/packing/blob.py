"""One floating-point tensor <-> bytes, exact, near the entropy of what it holds.

Zeros cost only their positions; of every other element the exponent is coded, since the exponents
of trained weights carry 1 to 3 bits, and the rest, which is noise, is stored as it is. Only +0.0
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
    36+8d   P         positions: nothing (all), or
                        gaps: one byte for each kept element in order, the number of zeros since
                          the last one; 255 stands for 255 zeros and no element; all as a raw
                          deflate stream (RFC 1951)
                        bitmask: bit i % 8 of byte i // 8 is 1 if element i is kept, the last bits
                          are 0; a stream of (N + 7) // 8 bytes
            E         exponents: the eight bits below the sign of each kept element; for n = 0
                      nothing, else
                        1 byte: the number of levels L, at most 8
                        3 L bytes: the three values of each level
                        8 (L + 1) bytes: the lengths of the streams that follow
                        the stream of each level, which is about m elements (the first about all
                          n): a digit in base 4 for each in order, four to a byte, the first one
                          least significant, 0 after the last; digits 0, 1, 2 are this value of the
                          level, and 3 leaves the element to what follows, which at most
                          half of the digits do
                        a stream of the exponents, a byte each, that are left
            n         for each kept element a byte: its sign, the highest bit, and its seven bits
                      below the exponent
            n (w-2)   for float32 (width w = 4 bytes) the low 16 bits of each kept element

A stream of s bytes is these bytes as they are if its length is s, else they are a raw deflate
stream. Four digits to a byte are a compromise: inflating takes time for each byte that comes out.

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

from hf_cyclprune.packing.chunks import Bytes
from hf_cyclprune.packing.entropy import code_exponents, decode_exponents
from hf_cyclprune.packing.errors import PackedError, check
from hf_cyclprune.packing.positions import (
    Kept,
    find_gaps,
    place_all,
    place_bits,
    place_gaps,
    split,
)
from hf_cyclprune.packing.streams import MOST, deflate, to_stream

VERSION = 1
_MAGIC = b"HFCP"
_HEAD = struct.Struct("<4sBBBBI")
_ALL, _GAPS, _BITMASK = range(3)
_MAX_DIMENSIONS = 8


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
        if len(dense) <= MOST * values.nbytes:
            yield dense
    if num_kept < values.size:
        is_kept = values != 0
        positions = {_BITMASK: to_stream(np.packbits(is_kept, bitorder="little"))}
        if num_kept <= values.size // 2:
            positions[_GAPS] = deflate(find_gaps(is_kept))
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
            check(head.shape == tuple(shape), f"shape {head.shape}; the model has {tuple(shape)}")
        fits = most is None or max(head.size, *head.shape, 0) <= most
        check(fits, f"shape {head.shape}; the whole model has {most} weights")
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
    check(magic == _MAGIC, "it does not begin as a packed weight does")
    check(version == VERSION, f"format version {version}; this reader knows {VERSION}")
    check(code in _DTYPES, f"unknown dtype {code}")
    check(form in (_ALL, _GAPS, _BITMASK), f"unknown form {form}")
    check(ndim <= _MAX_DIMENSIONS, f"{ndim} dimensions")
    facts = struct.Struct(f"<{ndim + 3}Q")
    num_kept, *dims, num_positions, num_exponents = facts.unpack_from(blob, _HEAD.size)
    dtype = _DTYPES[code]
    body = blob[_HEAD.size + facts.size :]
    length = num_positions + num_exponents + num_kept * (dtype.itemsize - 1)
    check(len(body) == length, f"{len(body)} bytes of content; its header says {length}")
    check(_checksum(blob) == crc, "the checksum does not fit: it is damaged")
    total = math.prod(dims)
    is_possible = total > 0 or math.prod(max(dim, 1) for dim in dims) < 1 << 63
    check(is_possible, f"shape {tuple(dims)}, which no tensor has")
    check(num_kept <= total, f"{num_kept} kept elements of {total}")
    positions, body = body[:num_positions], body[num_positions:]
    exponents, rest = body[:num_exponents], body[num_exponents:]
    return Head(dtype, tuple(dims), form, num_kept, positions, exponents, rest)


def _decode(head: Head) -> Tensor:
    kind = _TYPES[head.dtype]
    kept = Kept(decode_exponents(head.exponents, head.num_kept), head.rest, kind.bits)
    values = np.zeros(head.size, kind.bits)
    place = {_ALL: place_all, _GAPS: place_gaps, _BITMASK: place_bits}[head.form]
    place(head.positions, kept, values)
    signed = torch.from_numpy(values.view(f"i{kind.width}"))
    return signed.view(head.dtype).reshape(head.shape)


def _checksum(blob: memoryview) -> int:
    return zlib.crc32(blob[12:], zlib.crc32(blob[:8]))


def _to_bits(tensor: Tensor, kind: _Type) -> NDArray[Any]:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(kind.torch_bits).numpy().view(kind.bits)


def _assemble(
    kind: _Type, form: int, shape: Sequence[int], positions: bytes, kept: NDArray[Any]
) -> bytearray:
    exponents, rest = split(kept)
    coded = code_exponents(exponents)
    facts = struct.pack(f"<{len(shape) + 3}Q", kept.size, *shape, len(positions), len(coded))
    head = _HEAD.pack(_MAGIC, VERSION, kind.code, form, len(shape), 0)
    return bytearray().join((head, facts, positions, coded, rest))
