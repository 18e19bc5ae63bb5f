"""Damage packed weights and files at random: each must be refused, or give the same tensor.

    python examples/fuzz_packed.py [--num 200000] [--seed 0] [--fix_crc]

With --fix_crc the checksums are corrected after the damage, as an attacker would do. Then another
tensor may come out, but there must be no error other than PackedError, no memory beyond the size of
the tensor and no endless loop. One file is damaged for every 20 blobs.
"""

import argparse
import json
import random
import struct
import tempfile
import time
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hf_cyclprune.packing.blob import decode, encode
from hf_cyclprune.packing.errors import PackedError
from hf_cyclprune.packing.file import SUFFIX, Entry, check_file, checksum, make_metadata, write_file

BLOBS_PER_FILE = 20
ODD_NUMBERS = (0, 1, 2, 7, 255, 2**16, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
NUMBERS_AT = 12
POSITIONS, EXPONENTS = -2, -1  # places of their lengths in the header


@dataclass
class Counts:
    """The outcomes for the damaged blobs and files."""

    num_rejected: int = 0
    num_same: int = 0
    num_other: int = 0
    failures: list[str] = field(default_factory=list)
    peak: int = 0
    """The most bytes that a read took beyond three times the size of blob and tensors."""
    slowest: float = 0.0

    def __str__(self) -> str:
        return "\n".join(
            [
                f"rejected           {self.num_rejected:,}",
                f"the same tensor    {self.num_same:,}",
                f"another tensor     {self.num_other:,}",
                f"other errors       {len(self.failures):,}",
                f"peak extra memory  {self.peak / 1e6:.2f} MB",
                f"slowest            {self.slowest * 1e3:.1f} ms",
                *self.failures[:10],
            ]
        )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--num", type=int, default=200_000, help="number of damaged blobs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fix_crc", action="store_true", help="correct the checksums afterwards")
    counts = fuzz(**vars(parser.parse_args()))
    print(counts)
    return int(bool(counts.failures))


def fuzz(num: int, seed: int, fix_crc: bool) -> Counts:
    draw = random.Random(seed)
    counts = Counts()
    weights = [weight for weight in make_weights(seed) if encode(weight) is not None]
    blobs = [encode(weight).tobytes() for weight in weights]
    tracemalloc.start()
    for _ in range(num):
        place = draw.randrange(len(blobs))
        blob = damage(draw, blobs[place])
        if fix_crc:
            blob = seal(draw_deeper(draw, blob, blobs[place]))
        read_and_count(counts, blob, weights[place], draw.random() < 0.5, fix_crc)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(num // BLOBS_PER_FILE):
            path = Path(folder) / "model.sparse.safetensors"
            places = draw.sample(range(len(blobs)), 3)
            tensors = {f"layer.{i}.weight": weights[place] for i, place in enumerate(places)}
            path.write_bytes(damaged_file(draw, path, [blobs[i] for i in places], fix_crc))
            read_file_and_count(counts, path, tensors, fix_crc)
    tracemalloc.stop()
    return counts


def make_weights(seed: int) -> list[Tensor]:
    """Return small weights of every form and dtype."""
    generator = torch.Generator().manual_seed(seed)
    weights = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for shape in ((1, 40), (8, 16), (30, 50), (3, 7, 9), (600,)):
            for sparsity in (0.0, 0.5, 0.9, 0.999, 1.0):
                weight = torch.randn(shape, generator=generator) * 0.05
                is_kept = torch.rand(shape, generator=generator) >= sparsity
                weights.append(torch.where(is_kept, weight, 0.0).to(dtype))
        weight = torch.randn(20, 32, generator=generator).to(dtype)
        weight.view(-1, 4)[:, 1:3] = 0
        weights.append(weight)
        weights.append(torch.full((40, 20), -0.0, dtype=dtype))
    return weights


def damage(draw: random.Random, content: bytes) -> bytes:
    """Return the content with one to four changes."""
    damaged = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 4))):
        damaged = damaged or bytearray(draw.randbytes(1))
        place = draw.randrange(min(len(damaged), draw.choice((12, 64, len(damaged)))))
        length = draw.choice((1, 1, 2, 4, 8, 40))
        match draw.randrange(8):
            case 0 | 1:
                damaged[place] ^= 1 << draw.randrange(8)
            case 2 | 3:
                damaged[place] = draw.choice((0, 1, 2, 127, 128, 254, 255, draw.randrange(256)))
            case 4:
                del damaged[place : place + length]
            case 5:
                damaged[place:place] = draw.randbytes(length)
            case 6:
                damaged = damaged[:place] if draw.random() < 0.5 else damaged + bytes(length)
            case 7:
                other = draw.randrange(len(damaged))
                damaged[place : place + length] = damaged[other : other + length]
    return bytes(damaged) if damaged != content else damage(draw, content)


def draw_deeper(draw: random.Random, damaged: bytes, intact: bytes) -> bytes:
    """Return a blob with a change in its structure, which a checksum alone would not find."""
    kind = draw.randrange(4)
    if kind == 0:
        return damaged
    numbers, sections = split(intact)
    if kind == 1:
        for _ in range(draw.choice((1, 1, 2, 3))):
            numbers[draw.randrange(len(numbers))] = draw_number(draw, numbers)
        return join(intact, numbers, sections)
    place = draw.choice((POSITIONS, EXPONENTS))
    if place == POSITIONS or not sections[place] or draw.random() < 0.2:
        sections[place] = draw_stream(draw, sections[place])
    else:
        sections[place] = draw_exponents(draw, sections[place])
    numbers[place] = len(sections[place])
    return join(intact, numbers, sections)


def draw_exponents(draw: random.Random, coded: bytes) -> bytes:
    """Change the number of levels, a value, a length or a stream; correct most lengths."""
    num_levels, lengths_at = coded[0], 1 + 3 * coded[0]
    lengths = list(struct.unpack_from(f"<{num_levels + 1}Q", coded, lengths_at))
    ends = [lengths_at + 8 * len(lengths) + sum(lengths[: i + 1]) for i in range(len(lengths))]
    streams = [coded[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    head = coded[:lengths_at]
    match draw.randrange(6):
        case 0:
            head = damage(draw, head)
        case 1:
            lengths[draw.randrange(len(lengths))] = draw_number(draw, lengths)
        case 2:  # a level more or less
            level = draw.randrange(len(streams))
            changed = (
                [streams[level], *streams[level:]] if draw.random() < 0.5 else streams[level + 1 :]
            )
            streams[level:] = changed
            head = bytes([max(len(streams) - 1, 0)]) + draw.randbytes(3 * max(len(streams) - 1, 0))
            lengths = [len(stream) for stream in streams]
        case _:
            level = draw.randrange(len(streams))
            streams[level] = draw_stream(draw, streams[level])
            lengths[level] = len(streams[level])
    return head + struct.pack(f"<{len(lengths)}Q", *lengths) + b"".join(streams)


def draw_stream(draw: random.Random, stream: bytes) -> bytes:
    """Return a stream of damaged content, deflated or not, or of far too much content."""
    if draw.random() < 0.02:
        return deflate(bytes(draw.choice((1 << 16, 1 << 24))))
    try:
        content = zlib.decompress(stream, -15)
    except zlib.error:
        return damage(draw, stream)  # it is stored as it is
    changed = damage(draw, content)
    return changed if draw.random() < 0.2 else deflate(changed)


def draw_number(draw: random.Random, numbers: list[int]) -> int:
    near = (draw.choice(numbers) + draw.choice((-2, -1, 0, 1, 2))) % 2**64
    return draw.choice((near, near, draw.choice(ODD_NUMBERS)))


def split(blob: bytes) -> tuple[list[int], dict[int, bytes]]:
    """Return the numbers in the header, and the sections."""
    numbers = list(struct.unpack_from(f"<{blob[7] + 3}Q", blob, NUMBERS_AT))
    body = blob[NUMBERS_AT + 8 * len(numbers) :]
    end = numbers[POSITIONS] + numbers[EXPONENTS]
    exponents = body[numbers[POSITIONS] : end]
    return numbers, {POSITIONS: body[: numbers[POSITIONS]], EXPONENTS: exponents, 0: body[end:]}


def join(blob: bytes, numbers: list[int], sections: dict[int, bytes]) -> bytes:
    head = blob[:NUMBERS_AT] + struct.pack(f"<{len(numbers)}Q", *numbers)
    return head + sections[POSITIONS] + sections[EXPONENTS] + sections[0]


def deflate(content: bytes) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    return coder.compress(content) + coder.flush()


def seal(blob: bytes) -> bytes:
    """Return the blob with the right checksum."""
    if len(blob) < NUMBERS_AT:
        return blob
    crc = zlib.crc32(blob[12:], zlib.crc32(blob[:8]))
    return blob[:8] + crc.to_bytes(4, "little") + blob[12:]


def damaged_file(draw: random.Random, path: Path, blobs: list[bytes], fix_crc: bool) -> bytes:
    """Return a damaged packed file; `fix_crc` corrects the checksums of weights and file."""
    if fix_crc and draw.random() < 0.7:
        place = draw.randrange(len(blobs))
        blobs[place] = seal(draw_deeper(draw, damage(draw, blobs[place]), blobs[place]))
    entries = []
    checksums = {}
    for i, blob in enumerate(blobs):
        name = f"layer.{i}.weight{SUFFIX}"
        tensor = torch.tensor(np.frombuffer(blob, np.uint8))
        checksums[name] = checksum(name, tensor)
        shape = tuple(tensor.shape)
        entries.append(Entry(name, torch.uint8, shape, lambda tensor=tensor: tensor))
    write_file(path, entries, make_metadata(checksums))
    content = path.read_bytes()
    if not fix_crc:
        return damage(draw, content)
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size]
    if draw.random() < 0.3:
        header = damage(draw, header)
    elif draw.random() < 0.2:
        header = json.dumps(draw_header(draw, json.loads(header))).encode()
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def draw_header(draw: random.Random, header: dict) -> dict:
    """Change one value in the header of a file."""
    values = (None, [], {}, "", "x", True, 0, 1, -1, 2**31, 2**63, 2**64, [2**63], 0.5)
    name = draw.choice(list(header))
    if name == "__metadata__":
        entry = json.loads(header[name]["hf_cyclprune"])
        entry[draw.choice(list(entry))] = draw.choice(values)
        header[name]["hf_cyclprune"] = json.dumps(entry)
    else:
        header[name][draw.choice(list(header[name]))] = draw.choice(values)
    return header


def read_and_count(
    counts: Counts, blob: bytes, weight: Tensor, knows_shape: bool, fix_crc: bool
) -> None:
    options = {"shape": weight.shape} if knows_shape else {"max_size": weight.numel()}
    array = np.frombuffer(blob, np.uint8)
    expected = {"w": weight}
    allowed = 3 * (len(blob) + weight.nbytes)
    measure(counts, lambda: {"w": decode(array, "w", **options)}, expected, allowed, fix_crc)


def read_file_and_count(
    counts: Counts, path: Path, weights: dict[str, Tensor], fix_crc: bool
) -> None:
    def read() -> dict[str, Tensor]:
        tensors = check_file(path)
        return {
            name.removesuffix(SUFFIX): decode(tensor.numpy(), name, max_size=max_size)
            for name, tensor in tensors.items()
        }

    max_size = max(weight.numel() for weight in weights.values())
    size = sum(weight.nbytes for weight in weights.values()) + path.stat().st_size
    measure(counts, read, weights, 3 * size, fix_crc)


def measure(
    counts: Counts,
    read: Callable[[], dict[str, Tensor]],
    expected: dict[str, Tensor],
    allowed: int,
    fix_crc: bool,
) -> None:
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    start = time.perf_counter()
    try:
        tensors = read()
    except PackedError:
        counts.num_rejected += 1
    except Exception as error:  # every other one is a finding
        counts.failures.append(f"{type(error).__name__}: {error}"[:200])
    else:
        is_same = tensors.keys() == expected.keys() and all(
            are_same(tensors[name], expected[name]) for name in expected
        )
        counts.num_same += is_same
        counts.num_other += not is_same
        if not is_same and not fix_crc:
            counts.failures.append("another tensor than was packed")
    counts.slowest = max(counts.slowest, time.perf_counter() - start)
    extra = tracemalloc.get_traced_memory()[1] - before - allowed
    counts.peak = max(counts.peak, extra)


def are_same(a: Tensor, b: Tensor) -> bool:
    is_alike = a.dtype == b.dtype and a.shape == b.shape
    return is_alike and torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))


if __name__ == "__main__":
    raise SystemExit(main())
