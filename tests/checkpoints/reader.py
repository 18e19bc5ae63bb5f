"""A second reader of packed files, written from the docstrings of codec and container alone."""

import json
import math
import struct
import zlib

import numpy as np

DTYPES = {1: ("F32", 4), 2: ("BF16", 2), 3: ("F16", 2)}


def read_file(path):
    """Name in the dense file -> (dtype, shape, bytes)."""
    content = path.read_bytes()
    start = 8 + struct.unpack_from("<Q", content)[0]
    header = json.loads(content[8:start])
    facts = json.loads(header.pop("__metadata__")["hf_cyclprune"])
    assert facts["version"] == 1
    assert facts["crc32"].keys() == header.keys()
    tensors = {}
    for key, entry in header.items():
        dtype, shape = entry["dtype"], entry["shape"]
        data = content[slice(*(start + offset for offset in entry["data_offsets"]))]
        is_packed = key.endswith(".packed")
        text = f"{key} {dtype} {'x'.join(str(size) for size in shape)}".encode()
        assert facts["crc32"][key] == zlib.crc32(text + (data[:12] if is_packed else data))
        name = key.removesuffix(".packed")
        tensors[name] = read_blob(data) if is_packed else (dtype, tuple(shape), data)
    return tensors


def read_blob(blob):
    """(dtype, shape, bytes)."""
    magic, version, code, form, d, crc = struct.unpack_from("<4sBBBBI", blob)
    assert (magic, version, crc) == (b"HFCP", 1, zlib.crc32(blob[:8] + blob[12:]))
    n, *shape, p, e = struct.unpack_from(f"<{d + 3}Q", blob, 12)
    dtype, width = DTYPES[code]
    body = blob[36 + 8 * d :]
    assert len(body) == p + e + n * (width - 1)
    kept = np.zeros(n, np.uint32)
    if n:
        kept += read_exponents(body[p : p + e], n).astype(np.uint32) << 8 * (width - 1)
        low = np.frombuffer(body, "<u2" if width == 4 else "u1", n, p + e)
        kept += low
        if width == 4:
            kept += np.frombuffer(body, "u1", n, p + e + 2 * n).astype(np.uint32) << 16
    values = np.zeros(math.prod(shape), f"<u{width}")
    values[read_positions(form, body[:p], n, values.size)] = kept >> 1 | (kept & 1) << 8 * width - 1
    return dtype, tuple(shape), values.tobytes()


def read_positions(form, coded, n, total):
    if form == 0:
        assert (coded, n) == (b"", total)
        return np.arange(n)
    data = zlib.decompress(coded, -15)
    if form == 2:
        bits = np.unpackbits(np.frombuffer(data, "u1"), bitorder="little")
        assert not bits[total:].any()
        return np.flatnonzero(bits)
    places, zeros = [], 0
    for gap in data:
        zeros += gap
        if gap < 255:
            places.append(zeros + len(places))
    return np.array(places, int)


def read_exponents(coded, n):
    base = coded[0] + 1
    table = np.frombuffer(coded, "u1", base, 1)
    assert sorted(set(table)) == list(table)
    k = 8 if base == 1 else max(k for k in range(1, 9) if base**k <= 256)
    left = np.frombuffer(zlib.decompress(coded[1 + base :], -15), "u1").astype(int)
    digits = np.stack([left // base**place % base for place in range(k)], 1).reshape(-1)
    assert len(left) == -(-n // k)
    assert not digits[n:].any()
    return table[digits[:n]]
