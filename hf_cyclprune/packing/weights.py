"""The weights in a folder, dense or packed, one at a time."""

import zlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from hf_cyclprune.checks import reason_of
from hf_cyclprune.packing.blob import Head, decode, read_head
from hf_cyclprune.packing.entropy import Bytes
from hf_cyclprune.packing.file import SUFFIX, Entry, check_file, list_names, read_tensor, to_bytes
from hf_cyclprune.packing.manifest import (
    Manifest,
    dense_files,
    is_packed,
    list_files,
    read_config,
)

NO_CODE: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
"""Options of every from_pretrained of a folder: no code from it runs, and nothing is asked."""

CONFIG_FAULTS = (OSError, ValueError, LookupError, TypeError, AttributeError, StrictDataclassError)
"""What transformers raises for a config.json with anything in it."""


class DenseWeights:
    """The tensors in the safetensors files of a dense model."""

    def __init__(self, folder: Path) -> None:
        self._files = {name: file for file in dense_files(folder) for name in list_names(file)}
        self.names = set(self._files)

    def read(self, name: str) -> Tensor:
        """Return one tensor."""
        return read_tensor(self._files[name], name)


class PackedWeights:
    """The tensors of a packed model, under the names of the dense one.

    Raises:
        PackedError: A file is damaged, or tensors are missing, not listed or there twice.
    """

    def __init__(self, folder: Path) -> None:
        manifest = Manifest.from_dict(read_config(folder).get("quantization_config"), folder)
        found: list[str] = []
        self._files: dict[str, Path] = {}  # by the name in the file
        for path in list_files(folder, manifest.weights):
            names = list(check_file(path))
            self._files |= dict.fromkeys(names, path)
            found += [name.removesuffix(SUFFIX) for name in names]
        manifest.check_names(folder, found)
        self.names = set(found)
        self._max_size = count_weights(read_model_config(folder))

    def by_file(self) -> dict[str, list[str]]:
        """Return the names of the tensors in each file."""
        files: dict[str, list[str]] = {}
        for name, path in self._files.items():
            files.setdefault(path.name, []).append(name.removesuffix(SUFFIX))
        return files

    def read(self, name: str) -> Tensor:
        """Return one tensor.

        Raises:
            PackedError: It is damaged.
        """
        blob = self._blob(name)
        if blob is None:
            return read_tensor(self._files[name], name)
        return decode(blob, name, max_size=self._max_size)

    def entry(self, name: str) -> Entry:
        """Return one tensor as the entry of a dense file, which reads it again to write it."""
        blob = self._blob(name)
        head: Tensor | Head = (
            self.read(name) if blob is None else read_head(blob, name, max_size=self._max_size)
        )
        return Entry(name, head.dtype, tuple(head.shape), partial(self.read, name))

    def _blob(self, name: str) -> Bytes | None:
        path = self._files.get(name + SUFFIX)
        return None if path is None else read_tensor(path, name + SUFFIX).numpy()


def open_weights(folder: str | Path) -> DenseWeights | PackedWeights:
    """Return the weights in a folder, whichever they are.

    Raises:
        ValueError: The folder holds no model, or a damaged one.
    """
    entry = read_config(Path(folder)).get("quantization_config")
    return PackedWeights(Path(folder)) if is_packed(entry) else DenseWeights(Path(folder))


def max_sparsity(folder: str | Path) -> float:
    """Return the largest share of zeros in a matrix of the dense model in a folder.

    Raises:
        ValueError: The folder holds no dense model, or a damaged one.
    """
    weights = DenseWeights(Path(folder))
    tensors = (weights.read(name) for name in weights.names)
    shares = (1.0 - int(t.count_nonzero()) / t.numel() for t in tensors if t.ndim > 1 and t.numel())
    return max(shares, default=0.0)


def fingerprint(folder: str | Path) -> int:
    """Return the crc32 of a model's names and tensors, however it is sharded, packed or not.

    Raises:
        ValueError: The folder holds no model, or a damaged one.
    """
    weights, crc = open_weights(folder), 0
    for name in sorted(weights.names):
        crc = zlib.crc32(to_bytes(weights.read(name)), zlib.crc32(name.encode(), crc))
    return crc


def read_model_config(folder: str | Path) -> PretrainedConfig:
    """Return the config of the model in a folder; code that lies there never runs.

    Raises:
        ValueError: There is no readable config.json, or transformers does not know the model
            without code of its own ("auto_map").
    """
    read_config(Path(folder))
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, **NO_CODE)
    except CONFIG_FAULTS as error:
        raise ValueError(
            f"transformers does not know the model in '{folder}', and code from a folder is never "
            f"run: {reason_of(error)}. Save the model with a class of transformers."
        ) from error
    return config


def model_class(config: PretrainedConfig) -> Any:
    """Return the class that saved a model, or AutoModel if it is not a class of transformers."""
    names = config.architectures
    for name in names if isinstance(names, list) else ():
        cls = getattr(transformers, str(name), None)
        if isinstance(cls, type) and issubclass(cls, PreTrainedModel):
            return cls
    return AutoModel


def count_weights(config: PretrainedConfig) -> int:
    """Return the number of elements in all tensors of a model, without the memory for them."""
    cls = model_class(config)
    with torch.device("meta"):
        is_auto = issubclass(cls, AutoModel)
        model = cls.from_config(config, trust_remote_code=False) if is_auto else cls(config)
    return sum(tensor.numel() for tensor in model.state_dict().values())
