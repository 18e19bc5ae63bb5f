"""Safetensors files, written tensor by tensor and read with every byte checked.

A packed file is a safetensors file: a packed weight NAME is the blob of `codec` as the uint8
tensor `NAME.packed`, every other tensor is stored as it is. Its metadata holds, under
"hf_cyclprune", JSON:

    {"version": 1, "crc32": {KEY: checksum, ..}}

with KEY the name in the file and, for a tensor that is stored as it is, the crc32 of
"KEY DTYPE SHAPE" in ASCII and then of its bytes (DTYPE as safetensors writes it, SHAPE as 2x3); for
a blob the same, of its first 12 bytes only, which hold its own checksum.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hf_cyclprune.packing.errors import PackedError

FORMAT_VERSION = 1
SUFFIX = ".packed"
_KEY = "hf_cyclprune"
_ALIGNMENT = 8

_DTYPE_NAMES = {  # in the order of safetensors, which writes the last ones first
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}
_ORDER = {dtype: place for place, dtype in enumerate(_DTYPE_NAMES)}


@dataclass(frozen=True)
class Entry:
    """A tensor that will be written: what the header says of it, and how to get it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Any]
    """Its bytes."""

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_file(path: Path, entries: Iterable[Entry], metadata: dict[str, str]) -> None:
    """A safetensors file with one tensor after the other in memory; whole, or not there."""
    ordered = sorted(entries, key=lambda e: (-_ORDER[e.dtype], e.name))  # keeps them aligned
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for entry in ordered:
        end = offset + entry.num_bytes
        header[entry.name] = {
            "dtype": _DTYPE_NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for entry in ordered:
                file.write(entry.read())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def to_bytes(tensor: Tensor) -> Any:
    """The tensor's bytes in order, not copied where they are already on the CPU.  # uint8"""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""


def checksum(name: str, tensor: Tensor) -> int:
    """Of a tensor under its name in a packed file."""
    shape = "x".join(map(str, tensor.shape))
    start = zlib.crc32(f"{name} {_DTYPE_NAMES[tensor.dtype]} {shape}".encode())
    return zlib.crc32(to_bytes(tensor[:12] if name.endswith(SUFFIX) else tensor), start)


def check_packable(name: str, tensor: Tensor) -> None:
    """Raise a ValueError if a packed file cannot hold the tensor under its name."""
    if name.endswith(SUFFIX) or tensor.dtype not in _DTYPE_NAMES:
        raise ValueError(
            f"tensors must have a type of safetensors and no name in {SUFFIX}; got '{name}' "
            f"({tensor.dtype}). Leave this model dense."
        )


def make_metadata(
    checksums: dict[str, int], others: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    """The metadata of a packed file; `others` are those of the dense one."""
    facts = json.dumps({"version": FORMAT_VERSION, "crc32": checksums}, sort_keys=True)
    return {"format": "pt", **others, _KEY: facts}


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, but for ours.

    Raises:
        PackedError: it cannot be read.
    """
    with _opened(path) as file:
        metadata: dict[str, str] = file.metadata() or {}
    return {key: value for key, value in metadata.items() if key != _KEY}


def list_names(path: Path) -> list[str]:
    """The tensors' names in a safetensors file.

    Raises:
        PackedError: it cannot be read.
    """
    with _opened(path) as file:
        return list(file.keys())


def read_tensor(path: Path, name: str) -> Tensor:
    """One tensor of a safetensors file.

    Raises:
        PackedError: it is not there, or cannot be read.
    """
    with _opened(path) as file:
        return _get_tensor(file, path, name)


def check_file(path: Path) -> dict[str, Tensor]:
    """The tensors in a packed file under their names there, mapped into memory rather than copied.

    All is checked but what is in the blobs.

    Raises:
        PackedError: names the file and the tensor.
    """
    with _opened(path) as file:
        checksums = _read_checksums(path, file.metadata() or {})
        names = list(file.keys())
        odd = sorted(set(names) ^ checksums.keys())
        if odd:
            raise PackedError(
                f"{path} must hold the tensors that it lists; got a difference at '{odd[0]}'. "
                "Get the file again."
            )
        tensors = {name: _get_tensor(file, path, name) for name in names}
        for name, tensor in tensors.items():
            is_known = tensor.dtype in _DTYPE_NAMES and (
                not name.endswith(SUFFIX) or (tensor.dtype == torch.uint8 and tensor.ndim == 1)
            )
            if not is_known or checksum(name, tensor) != checksums[name]:
                raise PackedError(
                    f"the tensor '{name}' in {path} must have its checksum; got another. Get the "
                    "file again."
                )
    return tensors


def _get_tensor(file: Any, path: Path, name: str) -> Tensor:
    try:
        tensor: Tensor = file.get_tensor(name)
    except SafetensorError as error:
        raise PackedError(f"'{name}' cannot be read from {path}: {error}.") from error
    return tensor


def _read_checksums(path: Path, metadata: dict[str, str]) -> dict[str, int]:
    try:
        facts = json.loads(metadata[_KEY])
        version, checksums = facts["version"], dict(facts["crc32"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise PackedError(
            f"{path} must be a packed file of hf_cyclprune; got no readable header ({error!r}). "
            "Get the file again."
        ) from error
    if version != FORMAT_VERSION:
        raise PackedError(
            f"{path} must have format version {FORMAT_VERSION}; got {version}. Install a newer "
            "hf_cyclprune."
        )
    return checksums


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise PackedError(
            f"{path} must be a safetensors file; got: {error}. Get the file again."
        ) from error
