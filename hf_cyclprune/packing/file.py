"""Packed safetensors files, written tensor by tensor and read with every byte checked.

FORMAT.md specifies what they hold: blobs, plain tensors and a checksum of each.
"""

import json
import math
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hf_cyclprune.files import whole_file
from hf_cyclprune.packing.blob import encode
from hf_cyclprune.packing.errors import PackedError, as_packed_error

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


class Entry(NamedTuple):
    """A tensor to be written: what the header says about it, and how to get it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def write_file(path: Path, entries: Iterable[Entry], metadata: dict[str, str]) -> None:
    """Write a whole safetensors file with one tensor in memory at a time."""
    ordered = sorted(entries, key=lambda e: (-_ORDER[e.dtype], e.name))  # keeps them aligned
    header: dict[str, Any] = {"__metadata__": metadata}
    start = 0
    for entry in ordered:
        end = start + math.prod(entry.shape) * entry.dtype.itemsize
        header[entry.name] = {
            "dtype": _DTYPE_NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in ordered:
            file.write(to_bytes(entry.read()))


def pack_file(source: Path, target: Path, dtype: torch.dtype | None) -> list[str]:
    """Pack the weights of `source`, in another dtype if not None; return the names in `target`.

    Raises:
        ValueError: A tensor has a name or a dtype that a packed file cannot hold.
    """
    entries: list[Entry] = []
    checksums: dict[str, int] = {}
    with tempfile.TemporaryFile(dir=target.parent) as blobs:  # their sizes come first in the file
        for name in list_names(source):
            tensor = _read_as(source, name, dtype)
            if name.endswith(SUFFIX) or tensor.dtype not in _DTYPE_NAMES:
                raise ValueError(
                    f"A packed file cannot hold the tensor '{name}' ({tensor.dtype}): names must "
                    f"not end in {SUFFIX}, and safetensors must know the dtype. Leave this model "
                    "dense."
                )
            blob = encode(tensor) if tensor.ndim > 1 else None
            read = partial(_read_as, source, name, dtype)
            if blob is not None:
                name, tensor = name + SUFFIX, torch.tensor(blob)
                read = partial(_read_blob, blobs, blobs.tell(), blob.size)
                blobs.write(blob.data)
            checksums[name] = checksum(name, tensor)
            entries.append(Entry(name, tensor.dtype, tuple(tensor.shape), read))
        write_file(target, entries, make_metadata(checksums, read_metadata(source)))
    return [entry.name for entry in entries]


def _read_as(path: Path, name: str, dtype: torch.dtype | None) -> Tensor:
    tensor = read_tensor(path, name)
    if dtype is None or not tensor.is_floating_point():
        return tensor
    rounded = tensor.to(dtype)
    if not torch.equal(rounded.isfinite(), tensor.isfinite()):
        raise ValueError(
            f"dtype must be able to hold every weight; got {dtype}, in which '{name}' becomes "
            "infinite. Pass torch.bfloat16, or keep the weights as they are."
        )
    return rounded


def _read_blob(file: IO[bytes], start: int, size: int) -> Tensor:
    file.seek(start)
    return torch.from_numpy(np.fromfile(file, np.uint8, size))


def to_bytes(tensor: Tensor) -> bytes | memoryview:
    """Return the bytes of a tensor in order, without a copy where they are on the CPU already."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""


def checksum(name: str, tensor: Tensor) -> int:
    """Return the checksum of a tensor under its name in a packed file."""
    shape = "x".join(map(str, tensor.shape))
    start = zlib.crc32(f"{name} {_DTYPE_NAMES[tensor.dtype]} {shape}".encode())
    return zlib.crc32(to_bytes(tensor[:12] if name.endswith(SUFFIX) else tensor), start)


def make_metadata(
    checksums: Mapping[str, int], others: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the metadata of a packed file; `others` are those of the dense one."""
    header = json.dumps({"version": FORMAT_VERSION, "crc32": checksums}, sort_keys=True)
    return {"format": "pt", **(others or {}), _KEY: header}


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file without the entry of a packed one."""
    with _opened(path) as file:
        metadata = sorted((file.metadata() or {}).items())  # safetensors gives them in random order
    return {key: value for key, value in metadata if key != _KEY}


def list_names(path: Path) -> list[str]:
    """Return the names of the tensors in a safetensors file."""
    with _opened(path) as file:
        return list(file.keys())


def read_tensor(path: Path, name: str) -> Tensor:
    """Return one tensor of a safetensors file.

    Raises:
        PackedError: The tensor is missing, or cannot be read.
    """
    with _opened(path) as file:
        return _get_tensor(file, path, name)


def find_dtype(files: Iterable[Path]) -> str | None:
    """Return the dtype of the first floating-point tensor, which from_pretrained would take."""
    tensors = (read_tensor(file, name) for file in files for name in list_names(file))
    dtypes = (tensor.dtype for tensor in tensors if tensor.is_floating_point())
    return next((str(dtype).removeprefix("torch.") for dtype in dtypes), None)


def check_file(path: Path) -> dict[str, Tensor]:
    """Check a packed file, and return its tensors under their names there.

    They are mapped into memory rather than copied. The content of blobs is left to `decode`.

    Raises:
        PackedError: The file or a tensor is damaged; the error names them.
    """
    with _opened(path) as file:
        checksums = _read_checksums(path, file.metadata() or {})
        names = list(file.keys())
        if differing := sorted(set(names) ^ checksums.keys()):
            raise PackedError(
                f"{path} does not hold the tensors that its header lists: '{differing[0]}' is "
                "missing or added. Download the file again."
            )
        tensors = {name: _get_tensor(file, path, name) for name in names}
    for name, tensor in tensors.items():
        is_known = tensor.dtype in _DTYPE_NAMES and (
            not name.endswith(SUFFIX) or (tensor.dtype == torch.uint8 and tensor.ndim == 1)
        )
        if not is_known or checksum(name, tensor) != checksums[name]:
            raise PackedError(
                f"The tensor '{name}' in {path} is damaged: its checksum does not match. "
                "Download the file again."
            )
    return tensors


def _get_tensor(file: Any, path: Path, name: str) -> Tensor:
    with as_packed_error(f"'{name}' cannot be read from {path}", SafetensorError):
        tensor: Tensor = file.get_tensor(name)
    return tensor


def _read_checksums(path: Path, metadata: dict[str, str]) -> dict[str, int]:
    try:
        header = json.loads(metadata[_KEY])
        version, checksums = header["version"], dict(header["crc32"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise PackedError(
            f"{path} is not a packed file of hf_cyclprune, or its header is damaged ({error!r}). "
            "Download the file again."
        ) from error
    if version != FORMAT_VERSION:
        raise PackedError(
            f"{path} has format version {version}, and this reader knows {FORMAT_VERSION}. "
            "Install a newer hf_cyclprune."
        )
    return checksums


def _opened(path: Path) -> Any:
    with as_packed_error(f"{path} cannot be read as a safetensors file", SafetensorError, OSError):
        return safe_open(path, framework="pt")
