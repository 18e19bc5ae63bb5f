"""One floating-point tensor as bytes, exactly, in about as much space as its entropy.

A blob stores the positions of the elements that are not +0.0 and, of each of them, a coded
exponent and the other bits as they are. FORMAT.md specifies it byte by byte. The reader knows the
shape that the model expects, or at least how many elements there may be, before it takes memory.
"""

import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hf_cyclprune.packing.entropy import MAX_RATIO, Bytes, code_exponents, decode_exponents
from hf_cyclprune.packing.errors import PackedError, as_packed_error, check
from hf_cyclprune.packing.positions import (
    ALL,
    BITMASK,
    GAPS,
    Bits,
    code_positions,
    place,
    read_positions,
    split,
)

VERSION = 1
_MAGIC = b"HFCP"
_HEAD = struct.Struct("<4sBBBBI")
_CODES = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}
PACKABLE = tuple(_CODES)
"""The dtypes of which there are blobs."""
_MAX_DIMENSIONS = 8
_PROBLEM = "The packed weight '{}' is damaged or belongs to another model"
_FAULTS = (PackedError, struct.error, zlib.error)


def encode(tensor: Tensor) -> Bytes | None:
    """Return the smallest blob of a tensor, or None if no blob is smaller than the tensor.

    Only float32, bfloat16 and float16 have blobs.

    >>> half_empty = torch.tensor([0.0, 1.5] * 500)
    >>> blob = encode(half_empty)
    >>> blob.size < 0.45 * 4 * half_empty.numel()
    True
    >>> torch.equal(decode(blob, "weight", half_empty.shape), half_empty)
    True
    """
    if tensor.dtype not in _CODES or tensor.ndim > _MAX_DIMENSIONS:
        return None
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    signed = flat.view(torch.int32 if flat.itemsize == 4 else torch.int16)
    values = signed.numpy().view(f"u{flat.itemsize}")
    blob = min(_forms(values, tensor), key=len, default=None)
    if blob is None or len(blob) >= values.nbytes:
        return None
    blob[8:12] = _checksum(memoryview(blob)).to_bytes(4, "little")
    return np.frombuffer(blob, np.uint8)


def _forms(values: Bits, tensor: Tensor) -> Iterator[bytearray]:
    """Yield the blobs that may be the smallest, without their checksums."""
    num_kept = int(np.count_nonzero(values))
    if num_kept > values.size // 2:  # otherwise the exponents of the zeros cost more than gaps
        dense = _assemble(tensor, ALL, b"", values)
        if len(dense) <= MAX_RATIO * values.nbytes:
            yield dense
    if num_kept < values.size:
        is_kept = values != 0
        form, positions = code_positions(is_kept, num_kept)
        yield _assemble(tensor, form, positions, values[is_kept])


def _assemble(tensor: Tensor, form: int, positions: bytes, kept: Bits) -> bytearray:
    exponents, rest = split(kept)
    coded = code_exponents(exponents)
    head = _HEAD.pack(_MAGIC, VERSION, _CODES[tensor.dtype], form, tensor.ndim, 0)
    numbers = (kept.size, *tensor.shape, len(positions), len(coded))
    head += struct.pack(f"<{len(numbers)}Q", *numbers)
    return bytearray().join((head, positions, coded, rest))


class Head(NamedTuple):
    """The header of a blob, and the sections that follow it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    form: int
    num_kept: int
    positions: memoryview
    exponents: memoryview
    rest: memoryview


def read_head(
    blob: Bytes, name: str, shape: Sequence[int] | None = None, max_size: int | None = None
) -> Head:
    """Return the checked header of a blob; the arguments and errors are those of `decode`."""
    assert shape is not None or max_size is not None, "or a false header could ask for any memory"
    with as_packed_error(_PROBLEM.format(name), *_FAULTS):
        head = _parse(memoryview(np.ascontiguousarray(blob).data))
        its_shape = f"its shape is {head.shape}"
        if shape is not None:
            check(head.shape == tuple(shape), f"{its_shape}, and the model's is {tuple(shape)}")
        if max_size is not None:
            is_fitting = max(math.prod(head.shape), *head.shape, 0) <= max_size
            check(is_fitting, f"{its_shape}, and the whole model has {max_size} weights")
    return head


def decode(
    blob: Bytes, name: str, shape: Sequence[int] | None = None, max_size: int | None = None
) -> Tensor:
    """Return the tensor in a blob, on the CPU.

    Errors call the weight by its `name`. The model expects the `shape`; where that is not known,
    `max_size` is the most elements that the tensor may have.

    Raises:
        PackedError: The blob is damaged, or has another shape or more elements.
    """
    head = read_head(blob, name, shape, max_size)
    with as_packed_error(_PROBLEM.format(name), *_FAULTS):
        exponents = decode_exponents(head.exponents, head.num_kept)
        values = np.zeros(math.prod(head.shape), f"u{head.dtype.itemsize}")
        places = read_positions(head.form, head.positions, head.num_kept, values.size)
        place(exponents, head.rest, places, values)
    signed = torch.from_numpy(values.view(f"i{head.dtype.itemsize}"))
    return signed.view(head.dtype).reshape(head.shape)


def _parse(blob: memoryview) -> Head:
    magic, version, code, form, ndim, crc = _HEAD.unpack_from(blob)
    check(magic == _MAGIC, "it does not begin as a packed weight does")
    check(version == VERSION, f"it has format version {version}, and this reader knows {VERSION}")
    check(code in _DTYPES, f"it has the unknown dtype {code}")
    check(form in (ALL, GAPS, BITMASK), f"it has the unknown form {form} of positions")
    check(ndim <= _MAX_DIMENSIONS, f"it has {ndim} dimensions")
    numbers = struct.Struct(f"<{ndim + 3}Q")
    num_kept, *shape, num_positions, num_exponents = numbers.unpack_from(blob, _HEAD.size)
    dtype = _DTYPES[code]
    body = blob[_HEAD.size + numbers.size :]
    size = num_positions + num_exponents + num_kept * (dtype.itemsize - 1)
    check(len(body) == size, f"it has {len(body)} bytes of content, and its header says {size}")
    check(_checksum(blob) == crc, "its checksum does not match its content")
    total = math.prod(shape)
    is_possible = total > 0 or math.prod(max(dim, 1) for dim in shape) < 1 << 63
    check(is_possible, f"no tensor has its shape {tuple(shape)}")
    check(num_kept <= total, f"it has {num_kept} kept elements of {total}")
    positions, body = body[:num_positions], body[num_positions:]
    exponents, rest = body[:num_exponents], body[num_exponents:]
    return Head(dtype, tuple(shape), form, num_kept, positions, exponents, rest)


def _checksum(blob: memoryview) -> int:
    return zlib.crc32(blob[12:], zlib.crc32(blob[:8]))
