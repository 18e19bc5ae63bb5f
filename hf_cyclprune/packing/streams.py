"""Streams of a packed weight: bytes, deflated where that saves enough.

None is inflated further than it must be.
"""

import zlib

import numpy as np

from hf_cyclprune.packing.chunks import Bytes
from hf_cyclprune.packing.errors import check

MOST = 0.9
"""What is coded must save a tenth, or it is not worth the time to read it."""


def deflate(data: Bytes) -> bytes:
    """Huffman codes alone: there is nothing to match in noise."""
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    return coder.compress(data.data) + coder.flush()


def to_stream(data: Bytes) -> bytes:
    """Deflated if that saves enough, or as it is: the length tells which."""
    coded = deflate(data)
    return coded if len(coded) <= MOST * data.size else data.tobytes()


def read_stream(data: memoryview, size: int, what: str) -> Bytes:
    """The `size` bytes of a stream that is deflated unless it has this length."""
    if len(data) == size:
        return np.frombuffer(data, np.uint8)
    content = inflate(data, size, what)
    check(content.size == size, f"{content.size} bytes of {what} instead of {size}")
    return content


def inflate(data: memoryview, most: int, what: str) -> Bytes:
    """Never more than `most` bytes, which no valid stream exceeds."""
    coder = zlib.decompressobj(-15)
    content = coder.decompress(data, most + 1)
    check(len(content) <= most and coder.eof, f"the {what} are longer than they can be, or cut")
    check(not coder.unused_data, f"something follows the {what}")
    return np.frombuffer(content, np.uint8)
