"""A second reader of packed files, written from FORMAT.md alone."""

import json
import math
import struct
import zlib

import numpy as np

DTYPES = {1: ("F32", 4), 2: ("BF16", 2), 3: ("F16", 2)}


def read_file(path):
    """Return (dtype, shape, bytes) of each tensor, by its name in the dense file."""
    content = path.read_bytes()
    start = 8 + struct.unpack_from("<Q", content)[0]
    header = json.loads(content[8:start])
    metadata = json.loads(header.pop("__metadata__")["hf_cyclprune"])
    assert metadata["version"] == 1
    assert metadata["crc32"].keys() == header.keys()
    tensors = {}
    for key, entry in header.items():
        dtype, shape = entry["dtype"], entry["shape"]
        data = content[slice(*(start + offset for offset in entry["data_offsets"]))]
        is_packed = key.endswith(".packed")
        text = f"{key} {dtype} {'x'.join(str(size) for size in shape)}".encode()
        assert metadata["crc32"][key] == zlib.crc32(text + (data[:12] if is_packed else data))
        name = key.removesuffix(".packed")
        tensors[name] = read_blob(data) if is_packed else (dtype, tuple(shape), data)
    return tensors


def read_blob(blob):
    """Return (dtype, shape, bytes) of the tensor in a blob."""
    magic, version, code, form, d, crc = struct.unpack_from("<4sBBBBI", blob)
    assert (magic, version, crc) == (b"HFCP", 1, zlib.crc32(blob[:8] + blob[12:]))
    n, *shape, p, e = struct.unpack_from(f"<{d + 3}Q", blob, 12)
    dtype, width = DTYPES[code]
    body = blob[36 + 8 * d :]
    assert len(body) == p + e + n * (width - 1)
    signs = np.frombuffer(body, "u1", n, p + e).astype(np.uint32)
    kept = (signs >> 7) << 15 | read_exponents(body[p : p + e], n) << 7 | signs & 127
    if width == 4:
        kept = kept << 16 | np.frombuffer(body, "<u2", n, p + e + n)
    values = np.zeros(math.prod(shape), f"<u{width}")
    values[read_positions(form, body[:p], n, values.size)] = kept
    return dtype, tuple(shape), values.tobytes()


def read_stream(data, size):
    content = data if len(data) == size else zlib.decompress(data, -15)
    assert len(content) == size
    return np.frombuffer(content, "u1")


def read_positions(form, coded, n, total):
    if form == 0:
        assert (coded, n) == (b"", total)
        return np.arange(n)
    if form == 2:
        bits = np.unpackbits(read_stream(coded, (total + 7) // 8), bitorder="little")
        assert not bits[total:].any()
        return np.flatnonzero(bits)
    places, zeros = [], 0
    for gap in zlib.decompress(coded, -15):
        zeros += gap
        if gap < 255:
            places.append(zeros + len(places))
    return np.array(places, int)


def read_exponents(coded, n):
    if not n:
        return np.zeros(0, np.uint32)
    levels, place = coded[0], 1 + 3 * coded[0]
    tables = np.frombuffer(coded, "u1", 3 * levels, 1).reshape(levels, 3)
    lengths = struct.unpack_from(f"<{levels + 1}Q", coded, place)
    place += 8 * (levels + 1)
    assert place + sum(lengths) == len(coded)
    exponents, left = np.zeros(n, np.uint32), np.arange(n)
    for table, length in zip(tables, lengths, strict=False):
        digits = read_stream(coded[place : place + length], (len(left) + 3) // 4)
        digits = np.stack([digits >> 2 * i & 3 for i in range(4)], 1).reshape(-1)
        assert not digits[len(left) :].any()
        exponents[left] = np.append(table, 0)[digits[: len(left)]]
        left, place = left[digits[: len(left)] == 3], place + length
    exponents[left] = read_stream(coded[place:], len(left))
    return exponents
