"""The weights in a folder, dense or packed, one at a time."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from hf_cyclprune.packing.blob import decode, read_head
from hf_cyclprune.packing.file import (
    SUFFIX,
    Entry,
    check_file,
    list_names,
    read_tensor,
    to_bytes,
)
from hf_cyclprune.packing.manifest import METHOD, Manifest, dense_files, list_files, read_config


class DenseWeights:
    """The tensors in plain safetensors."""

    def __init__(self, folder: Path) -> None:
        self._files = {name: file for file in dense_files(folder) for name in list_names(file)}

    @property
    def names(self) -> set[str]:
        return set(self._files)

    def read(self, name: str) -> Tensor:
        return read_tensor(self._files[name], name)


class PackedWeights:
    """The tensors of a packed folder, under the names of the dense one.

    Raises:
        PackedError: a file is damaged, or tensors are missing, unlisted or there twice.
    """

    def __init__(self, folder: Path) -> None:
        facts = Manifest.from_dict(read_config(folder).get("quantization_config"), folder)
        found: list[str] = []
        self._files: dict[str, Path] = {}
        """Name in the file -> file."""
        for path in list_files(folder, facts.weights):
            names = list(check_file(path))
            self._files |= dict.fromkeys(names, path)
            found += [name.removesuffix(SUFFIX) for name in names]
        facts.check_names(folder, found)
        self.names = set(found)
        self._most = count_weights(AutoConfig.from_pretrained(folder))

    def by_file(self) -> dict[str, list[str]]:
        """File name -> names of its tensors."""
        files: dict[str, list[str]] = {}
        for name, path in self._files.items():
            files.setdefault(path.name, []).append(name.removesuffix(SUFFIX))
        return files

    def read(self, name: str) -> Tensor:
        """One tensor.

        Raises:
            PackedError: it is damaged.
        """
        blob = self._blob(name)
        if blob is None:
            return read_tensor(self._files[name], name)
        return decode(blob, name, most=self._most)

    def entry(self, name: str) -> Entry:
        """For a dense file."""
        blob = self._blob(name)
        what: Any = self.read(name) if blob is None else read_head(blob, name, most=self._most)
        return Entry(name, what.dtype, tuple(what.shape), lambda: to_bytes(self.read(name)))

    def _blob(self, name: str) -> Any:
        """None if the tensor is stored as it is."""
        path = self._files.get(name + SUFFIX)
        return None if path is None else read_tensor(path, name + SUFFIX).numpy()


def open_weights(folder: str | Path) -> DenseWeights | PackedWeights:
    """The weights in a folder.

    Raises:
        ValueError: it holds no model.
    """
    folder = Path(folder)
    facts = read_config(folder).get("quantization_config")
    is_packed = isinstance(facts, dict) and facts.get("quant_method") == METHOD
    return PackedWeights(folder) if is_packed else DenseWeights(folder)


def verify(a: str | Path, b: str | Path) -> str | None:
    """The first difference between the weights in two folders, dense or packed; None if the same.

    Raises:
        ValueError: a folder without a model, or with a damaged one.
    """
    first, second = open_weights(a), open_weights(b)
    for name in sorted(first.names ^ second.names):
        return f"'{name}' is only in {a if name in first.names else b}"
    for name in sorted(first.names):
        x, y = first.read(name), second.read(name)
        if x.dtype != y.dtype or x.shape != y.shape:
            return f"'{name}' is {_describe(x)} in {a} and {_describe(y)} in {b}"
        place = _first_difference(x, y)
        if place is not None:
            return f"'{name}' differs{place}"
    return None


def fingerprint(folder: str | Path) -> int:
    """crc32 of a dense model's names and tensors, however they are spread over files.

    Raises:
        ValueError: the folder holds no dense model, or a damaged one.
    """
    weights, checksum = DenseWeights(Path(folder)), 0
    for name in sorted(weights.names):
        checksum = zlib.crc32(to_bytes(weights.read(name)), zlib.crc32(name.encode(), checksum))
    return checksum


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}".removeprefix("torch.")


def _first_difference(x: Tensor, y: Tensor) -> str | None:
    a, b = (np.frombuffer(to_bytes(t), np.uint8).reshape(-1, t.element_size()) for t in (x, y))
    differs = np.flatnonzero((a != b).any(1))
    if not differs.size:
        return None
    first = int(differs[0])
    place = ", ".join(str(int(i)) for i in np.unravel_index(first, tuple(x.shape)))
    values = f"{x.reshape(-1)[first].item()!r} and {y.reshape(-1)[first].item()!r}"
    return f" in {differs.size} elements, first at [{place}]: {values}"


def model_class(config: PretrainedConfig) -> Any:
    """The class that saved a model; AutoModel if it is not one of transformers."""
    for name in config.architectures or []:
        cls = getattr(transformers, str(name), None)
        if isinstance(cls, type) and issubclass(cls, PreTrainedModel):
            return cls
    return AutoModel


def count_weights(config: PretrainedConfig) -> int:
    """Elements in all tensors of the model that a config describes, without their memory."""
    cls: Any = model_class(config)
    auto: Any = AutoModel
    with torch.device("meta"):
        model = cls.from_config(config) if cls is auto else cls(config)
    return sum(tensor.numel() for tensor in model.state_dict().values())
