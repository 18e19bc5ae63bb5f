"""Weights with any bits, and blobs put together by hand."""

import struct
import zlib

import numpy as np
import pytest
import torch

from hf_cyclprune.packing.blob import decode, encode
from hf_cyclprune.packing.errors import PackedError
from tests.packing.reader import DTYPES, read_blob

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
CHUNK = 1 << 17
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
SPECIAL = {  # -0.0, Inf, -Inf, a quiet and a signaling NaN with payload, smallest denormal, largest
    torch.float32: [1 << 31, 0x7F80 << 16, 0xFF80 << 16, 0x7FC01234, 0xFF812345, 1, 0x7F7FFFFF],
    torch.bfloat16: [1 << 15, 0x7F80, 0xFF80, 0x7FC5, 0xFF81, 1, 0x7F7F],
    torch.float16: [1 << 15, 0x7C00, 0xFC00, 0x7E05, 0xFC01, 1, 0x7BFF],
}
ALL, GAPS, BITMASK = range(3)
THREE = torch.tensor([1.0, 2.0, 3.0])


def from_bits(bits, dtype):
    width = dtype.itemsize
    return torch.from_numpy(np.array(bits, f"u{width}").view(f"i{width}")).view(dtype)


def bits_of(tensor):
    return tensor.contiguous().view(-1).view(BITS[tensor.dtype]).reshape(tensor.shape)


def normal(*shape, dtype=torch.float32, seed=0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.05).to(dtype)


def prune(weight, sparsity):
    """Set the smallest elements to +0.0."""
    flat = weight.clone().reshape(-1)
    flat[flat.abs().float().argsort()[: round(sparsity * flat.numel())]] = 0
    return flat.reshape(weight.shape)


def prune_2_of_4(weight):
    groups = weight.reshape(-1, 4)
    pruned = groups.abs().float().argsort(1)[:, :2]
    return groups.scatter(1, pruned, 0).reshape(weight.shape)


def assert_round_trip(tensor):
    """Encode the tensor, decode it with both readers, and return the blob."""
    blob = encode(tensor)
    assert blob is not None
    assert blob.dtype == np.uint8
    assert blob.nbytes < tensor.numel() * tensor.element_size()
    back = decode(blob, "w", tensor.shape)
    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    assert torch.equal(bits_of(back), bits_of(tensor))
    name, width = DTYPES[blob[5]]
    shape, content = tuple(tensor.shape), bits_of(tensor).numpy().tobytes()
    assert read_blob(blob.tobytes()) == (name, shape, content)
    assert width == tensor.element_size()
    return blob


def form_of(blob):
    return int(blob[6])


def raw(data):
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    return coder.compress(bytes(data)) + coder.flush()


def exponents(values):
    """Return a section of exponents without levels."""
    return levels([], bytes(values))


def levels(tables, *streams):
    """Put a section of exponents together from tables and streams."""
    lengths = struct.pack(f"<{len(streams)}Q", *map(len, streams))
    head = bytes([len(tables)]) + b"".join(bytes(table) for table in tables)
    return head + lengths + b"".join(streams)


def split(weight):
    """Return the sections with the exponents and the other bits of float32 elements."""
    bits = bits_of(weight).numpy().view("<u4")
    signs = (bits >> 24 & 128 | bits >> 16 & 127).astype(np.uint8)
    rest = signs.tobytes() + bits.astype("<u2").tobytes()
    return exponents((bits >> 23 & 255).tolist()), rest


def build(
    shape, kept=0, positions=None, coded=b"", rest=b"", *, form=GAPS, code=1, version=1, **lies
):
    """Put a blob together from its parts, with the right checksum."""
    positions = raw(b"") if positions is None else positions
    sizes = (lies.get("num_positions", len(positions)), lies.get("num_exponents", len(coded)))
    head = struct.pack("<4sBBBBI", b"HFCP", version, code, form, lies.get("ndim", len(shape)), 0)
    numbers = struct.pack(f"<{len(shape) + 3}Q", kept, *shape, *sizes)
    return seal(head + numbers + positions + coded + rest)


def seal(blob):
    blob = bytearray(blob)
    blob[8:12] = zlib.crc32(bytes(blob[:8] + blob[12:])).to_bytes(4, "little")
    return np.frombuffer(bytes(blob), np.uint8)


def assert_refused(blob, shape=(2, 32), match="", **options):
    options = options or {"shape": shape}
    message = rf"'layer\.weight' is damaged.*{match}.*Download the file again"
    with pytest.raises(PackedError, match=message):
        decode(blob, "layer.weight", **options)


def parts(weight):
    coded, rest = split(weight)
    return {"coded": coded, "rest": rest}
