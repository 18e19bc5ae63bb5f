"""Damage packed weights and packed files at random: each must be refused, or give the same tensor.

    python examples/fuzz_packed.py [--num 200000] [--seed 0] [--fix_crc]

With --fix_crc the checksums are made to fit after the damage, as an attacker would. Then another
tensor may come out; but no other error than PackedError, no memory beyond the tensor's size and no
endless loop. One file is damaged for every 20 blobs.
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

from hf_cyclprune.packing import file as container
from hf_cyclprune.packing.blob import decode, encode
from hf_cyclprune.packing.errors import PackedError

BLOBS_PER_FILE = 20
ODD_NUMBERS = (0, 1, 2, 7, 255, 2**16, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
FACTS_AT = 12
POSITIONS, EXPONENTS = -2, -1  # places of their lengths in the header


@dataclass
class Counts:
    """What became of the damaged blobs and files."""

    num_rejected: int = 0
    num_same: int = 0
    num_other: int = 0
    failures: list[str] = field(default_factory=list)
    peak: int = 0
    """Most bytes that reading one took, beyond three times its size and that of its tensors."""
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
    parser.add_argument("--num", type=int, default=200_000, help="of damaged blobs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fix_crc", action="store_true", help="make the checksums fit again")
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
    """Small ones of every form and type."""
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
    """One to four changes, after which it is not the same."""
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
    """Often a change that takes more of the format to find than damaged bytes do."""
    kind = draw.randrange(4)
    if kind == 0:
        return damaged
    facts, sections = split(intact)
    if kind == 1:
        for _ in range(draw.choice((1, 1, 2, 3))):
            facts[draw.randrange(len(facts))] = draw_number(draw, facts)
        return join(intact, facts, sections)
    place = draw.choice((POSITIONS, EXPONENTS))
    if place == POSITIONS or not sections[place] or draw.random() < 0.2:
        sections[place] = draw_stream(draw, sections[place])
    else:
        sections[place] = draw_exponents(draw, sections[place])
    facts[place] = len(sections[place])
    return join(intact, facts, sections)


def draw_exponents(draw: random.Random, coded: bytes) -> bytes:
    """Another number of levels, values, length or stream, mostly with the lengths that fit."""
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
    """Another one: of damaged content, deflated or not, or of far too much."""
    if draw.random() < 0.02:
        return deflate(bytes(draw.choice((1 << 16, 1 << 24))))
    try:
        content = zlib.decompress(stream, -15)
    except zlib.error:
        return damage(draw, stream)  # it is stored as it is
    changed = damage(draw, content)
    return changed if draw.random() < 0.2 else deflate(changed)


def draw_number(draw: random.Random, facts: list[int]) -> int:
    near = (draw.choice(facts) + draw.choice((-2, -1, 0, 1, 2))) % 2**64
    return draw.choice((near, near, draw.choice(ODD_NUMBERS)))


def split(blob: bytes) -> tuple[list[int], dict[int, bytes]]:
    """The numbers in the header, and the sections."""
    facts = list(struct.unpack_from(f"<{blob[7] + 3}Q", blob, FACTS_AT))
    body = blob[FACTS_AT + 8 * len(facts) :]
    end = facts[POSITIONS] + facts[EXPONENTS]
    exponents = body[facts[POSITIONS] : end]
    return facts, {POSITIONS: body[: facts[POSITIONS]], EXPONENTS: exponents, 0: body[end:]}


def join(blob: bytes, facts: list[int], sections: dict[int, bytes]) -> bytes:
    head = blob[:FACTS_AT] + struct.pack(f"<{len(facts)}Q", *facts)
    return head + sections[POSITIONS] + sections[EXPONENTS] + sections[0]


def deflate(content: bytes) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    return coder.compress(content) + coder.flush()


def seal(blob: bytes) -> bytes:
    """With the checksum that fits."""
    if len(blob) < FACTS_AT:
        return blob
    crc = zlib.crc32(blob[12:], zlib.crc32(blob[:8]))
    return blob[:8] + crc.to_bytes(4, "little") + blob[12:]


def damaged_file(draw: random.Random, path: Path, blobs: list[bytes], fix_crc: bool) -> bytes:
    """Of a packed file with three weights; with `fix_crc`, of its weights and its header."""
    if fix_crc and draw.random() < 0.7:
        place = draw.randrange(len(blobs))
        blobs[place] = seal(draw_deeper(draw, damage(draw, blobs[place]), blobs[place]))
    entries = []
    checksums = {}
    for i, blob in enumerate(blobs):
        name = f"layer.{i}.weight{container.SUFFIX}"
        tensor = torch.tensor(np.frombuffer(blob, np.uint8))
        checksums[name] = container.checksum(name, tensor)
        shape = tuple(tensor.shape)
        entries.append(container.Entry(name, torch.uint8, shape, lambda blob=blob: blob))
    container.write_file(path, entries, container.make_metadata(checksums))
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
    """Another value somewhere in it."""
    values = (None, [], {}, "", "x", True, 0, 1, -1, 2**31, 2**63, 2**64, [2**63], 0.5)
    name = draw.choice(list(header))
    if name == "__metadata__":
        facts = json.loads(header[name]["hf_cyclprune"])
        facts[draw.choice(list(facts))] = draw.choice(values)
        header[name]["hf_cyclprune"] = json.dumps(facts)
    else:
        header[name][draw.choice(list(header[name]))] = draw.choice(values)
    return header


def read_and_count(
    counts: Counts, blob: bytes, weight: Tensor, knows_shape: bool, fix_crc: bool
) -> None:
    options = {"shape": weight.shape} if knows_shape else {"most": weight.numel()}
    array = np.frombuffer(blob, np.uint8)
    expected = {"w": weight}
    allowed = 3 * (len(blob) + weight.nbytes)
    measure(counts, lambda: {"w": decode(array, "w", **options)}, expected, allowed, fix_crc)


def read_file_and_count(
    counts: Counts, path: Path, weights: dict[str, Tensor], fix_crc: bool
) -> None:
    def read() -> dict[str, Tensor]:
        names = container.check_file(path)
        return {
            name.removesuffix(container.SUFFIX): decode(
                container.read_tensor(path, name).numpy(), name, most=most
            )
            for name in names
        }

    most = max(weight.numel() for weight in weights.values())
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
