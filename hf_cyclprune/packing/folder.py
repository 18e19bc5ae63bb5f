"""Packed folders: a model's folder with its sparse weights packed, and back, bit for bit.

A packed folder has the files of the dense one, except that `model.sparse.safetensors` (or its
shards and `model.sparse.safetensors.index.json`) takes the place of the weights, and that
config.json has an entry "quantization_config":

    {"quant_method": "hf_cyclprune", "version": 1, "weights": FILE, "dtype": "float32",
     "tensors": [NAME, ..]}

from which `from_pretrained` knows what to do once hf_cyclprune is imported. Without the import
there is no file of weights that it knows, and it says so: it never goes on with random weights.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from hf_cyclprune.files import STATE_NAME
from hf_cyclprune.packing.blob import encode
from hf_cyclprune.packing.errors import PackedError
from hf_cyclprune.packing.file import (
    SUFFIX,
    Entry,
    check_packable,
    checksum,
    list_names,
    make_metadata,
    read_metadata,
    read_tensor,
    to_bytes,
    write_file,
)
from hf_cyclprune.packing.manifest import (
    DENSE,
    INDEX,
    PACKED,
    Manifest,
    dense_files,
    read_config,
    read_index_metadata,
    write_config,
    write_index,
)
from hf_cyclprune.packing.weights import PackedWeights, model_class

PICKLES = (
    *(".bin", ".pt", ".pth", ".pkl", ".pickle", ".dill", ".joblib", ".npy", ".npz", ".ckpt"),
    *(".h5", ".msgpack"),
)


def pack(source: str | Path, target: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write the folder `target`: the model in `source`, packed.

    One tensor at a time is in memory. Other files travel along, except pickles and folders.

    Args:
        source: a folder with config.json and safetensors.
        target: new or empty; afterwards it is there whole, or not at all.
        dtype: convert floating-point tensors first, which changes the weights; None keeps them.

    Raises:
        ValueError: no such model, one that is packed or quantized already, or a target with files.
    """
    source = Path(source)
    config = read_config(source)
    if "quantization_config" in config:
        raise ValueError(
            f"IN must be a dense model; got '{source}', whose config.json has a "
            "quantization_config. Unpack it first."
        )
    files = dense_files(source)
    with _new_folder(target) as folder:
        places: dict[str, str] = {}
        for number, file in enumerate(files, start=1):
            name = _shard_name(PACKED, number, len(files))
            places |= dict.fromkeys(_pack_file(file, folder / name, dtype), name)
        weights = PACKED
        if len(files) > 1:
            weights = PACKED + INDEX
            metadata = read_index_metadata(source / (DENSE + INDEX))
            write_index(folder / weights, places, metadata)
        if dtype is not None:
            config["dtype"] = str(dtype).removeprefix("torch.")
        names = tuple(name.removesuffix(SUFFIX) for name in places)
        facts = Manifest(weights, names, _find_dtype(files) if dtype is None else config["dtype"])
        config["quantization_config"] = facts.to_dict()
        write_config(folder, config)
        _copy_others(source, folder, files)


def save_packed(
    model: PreTrainedModel, folder: str | Path, dtype: torch.dtype | None = None
) -> None:
    """`pack` for a model in memory, by way of a temporary dense copy beside `folder`.

    Raises:
        ValueError: `folder` holds files.
    """
    parent = Path(folder).absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=".dense-") as dense:
        model.save_pretrained(dense)
        pack(dense, folder, dtype)


def unpack(source: str | Path, target: str | Path) -> None:
    """Write the folder `target`: the packed model in `source`, dense, as it was before `pack`.

    Raises:
        ValueError: a target with files, or no packed model.
        PackedError: the packed model is damaged; names the file or the tensor.
    """
    source = Path(source)
    config = read_config(source)
    weights = PackedWeights(source)
    del config["quantization_config"]
    with _new_folder(target) as folder:
        places: dict[str, str] = {}
        for file, names in weights.by_file().items():
            name = file.replace(PACKED.removesuffix(".safetensors"), "model", 1)
            write_file(folder / name, map(weights.entry, names), read_metadata(source / file))
            places |= dict.fromkeys(names, name)
        if len(weights.by_file()) > 1:
            metadata = read_index_metadata(source / (PACKED + INDEX))
            write_index(folder / (DENSE + INDEX), places, metadata)
        write_config(folder, config)
        _copy_others(source, folder, [source / file for file in weights.by_file()])


def load_packed(folder: str | Path, **options: Any) -> PreTrainedModel:
    """The model in a packed folder, of the class that was saved; `options` go to from_pretrained.

    Uses no more of transformers than `from_pretrained(None, config=.., state_dict=..)`.

    Raises:
        PackedError: the packed model is damaged; names the file or the tensor.
    """
    weights = PackedWeights(Path(folder))
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    state_dict = {name: weights.read(name) for name in weights.names}
    try:
        model: PreTrainedModel = model_class(config).from_pretrained(
            None, config=config, state_dict=state_dict, **options
        )
    except RuntimeError as error:
        raise PackedError(
            f"{folder} must hold the weights of the model in its config.json; got: {error}. "
            "Get the folder again."
        ) from error
    return model


def _pack_file(source: Path, target: Path, dtype: torch.dtype | None) -> list[str]:
    """Pack one file; return the names in it."""
    entries: list[Entry] = []
    checksums: dict[str, int] = {}

    def load(name: str) -> Tensor:
        tensor = read_tensor(source, name)
        return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor

    with tempfile.TemporaryFile(dir=target.parent) as blobs:

        def read_blob(start: int, size: int) -> bytes:
            blobs.seek(start)
            return blobs.read(size)

        for name in list_names(source):
            tensor = load(name)
            check_packable(name, tensor)
            blob = encode(tensor) if tensor.ndim > 1 else None
            if blob is None:
                key, read = name, partial(_load_bytes, load, name)
            else:
                key, read = name + SUFFIX, partial(read_blob, blobs.tell(), blob.size)
                blobs.write(blob.data)
                tensor = torch.tensor(blob)
            checksums[key] = checksum(key, tensor)
            entries.append(Entry(key, tensor.dtype, tuple(tensor.shape), read))
        write_file(target, entries, make_metadata(checksums, read_metadata(source)))
    return [entry.name for entry in entries]


def _find_dtype(files: list[Path]) -> str | None:
    """Of the first floating-point tensor, as from_pretrained would find it."""
    for file in files:
        for name in list_names(file):
            tensor = read_tensor(file, name)
            if tensor.is_floating_point():
                return str(tensor.dtype).removeprefix("torch.")
    return None


def _load_bytes(load: Callable[[str], Tensor], name: str) -> Any:
    return to_bytes(load(name))


def _shard_name(name: str, number: int, total: int) -> str:
    if total == 1:
        return name
    return f"{name.removesuffix('.safetensors')}-{number:05d}-of-{total:05d}.safetensors"


def _copy_others(source: Path, folder: Path, weights: list[Path]) -> None:
    """Tokenizer, card, reports, adapters; not config.json, the weights, masks or pickles."""
    skipped = {"config.json", STATE_NAME, *(path.name for path in weights)}
    for path in source.iterdir():
        is_stale = path.name.startswith("model") and path.name.endswith((".safetensors", INDEX))
        is_skipped = path.name in skipped or is_stale
        if path.is_file() and not is_skipped and path.suffix.lower() not in PICKLES:
            shutil.copyfile(path, folder / path.name)


@contextmanager
def _new_folder(target: str | Path) -> Iterator[Path]:
    """A folder under a temporary name that takes its own when all went well."""
    target = Path(target).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"OUT must be a new or empty folder; got '{target}'. Name another one.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary:
        folder = Path(temporary) / target.name
        folder.mkdir()
        yield folder
        os.replace(folder, target)
