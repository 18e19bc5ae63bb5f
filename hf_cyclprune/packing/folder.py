"""Packed folders: a model's folder with its sparse weights packed, and back, bit for bit.

FORMAT.md specifies what is in them. `from_pretrained` reads them once hf_cyclprune is imported.
Without the import it finds no file with weights that it knows, and raises an error: it never goes
on with random weights.
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, PreTrainedModel

from hf_cyclprune.files import new_folder, write_json
from hf_cyclprune.packing.blob import PACKABLE
from hf_cyclprune.packing.errors import NothingToPackError, as_packed_error
from hf_cyclprune.packing.file import SUFFIX, find_dtype, pack_file, read_metadata, write_file
from hf_cyclprune.packing.manifest import (
    CONFIG,
    DENSE,
    INDEX,
    PACKED,
    Manifest,
    dense_files,
    read_config,
    write_index,
)
from hf_cyclprune.packing.others import copy_files, other_files
from hf_cyclprune.packing.weights import NO_CODE, PackedWeights, model_class, read_model_config

_STEM = PACKED.removesuffix(".safetensors")


def pack(source: str | Path, target: str | Path, dtype: torch.dtype | None = None) -> None:
    """Pack the model in the folder `source`, saved as safetensors, into a new or empty `target`.

    The other files of the model are copied, sub-folders included (see `model_files`). If packing
    fails, `target` stays as it is. A `dtype` changes the weights: all floating-point tensors are
    converted to it first. One tensor at a time is in memory.

    Raises:
        ValueError: `source` holds no model that transformers knows, or one that is packed or
            quantized already, or in which nothing is sparse; or `target` holds files.
    """
    pack_with(other_files(Path(source)), source, target, dtype)


def pack_with(
    others: Iterable[str], source: str | Path, target: str | Path, dtype: torch.dtype | None = None
) -> None:
    """Pack as `pack` does, with these other files, given by their paths in `source`."""
    if dtype not in (None, *PACKABLE):
        raise ValueError(
            f"dtype must be one of {', '.join(map(str, PACKABLE))}; got {dtype!r}. Leave it out to "
            "keep the weights as they are."
        )
    source = Path(source)
    config = read_config(source)
    if "quantization_config" in config:
        raise ValueError(f"The model in '{source}' is packed or quantized. Unpack it first.")
    files = dense_files(source)
    read_model_config(source)
    with new_folder(target) as folder:
        places: dict[str, str] = {}
        for number, file in enumerate(files, start=1):
            shard = f"{_STEM}-{number:05d}-of-{len(files):05d}.safetensors"
            name = shard if len(files) > 1 else PACKED
            places |= dict.fromkeys(pack_file(file, folder / name, dtype), name)
        if not any(name.endswith(SUFFIX) for name in places):
            raise NothingToPackError(
                f"The model in '{source}' cannot be packed: nothing in it is sparse and of a dtype "
                f"that can be packed ({', '.join(map(str, PACKABLE))}). Prune it first, or keep it "
                "as it is."
            )
        weights = PACKED
        if len(files) > 1:
            weights = PACKED + INDEX
            write_index(folder / weights, source / (DENSE + INDEX), places)
        saved_as = find_dtype(files) if dtype is None else str(dtype).removeprefix("torch.")
        if dtype is not None:
            config["dtype"] = saved_as
        names = tuple(name.removesuffix(SUFFIX) for name in places)
        config["quantization_config"] = Manifest(weights, names, saved_as).to_dict()
        write_json(folder / CONFIG, config, sort_keys=True)
        copy_files(others, source, folder, files)


def save_packed(
    model: PreTrainedModel, folder: str | Path, dtype: torch.dtype | None = None
) -> None:
    """Pack a model in memory into `folder`, by way of a temporary dense copy beside it.

    `dtype` is that of `pack`.

    Raises:
        ValueError: `folder` holds files, or nothing in the model is sparse.
    """
    parent = Path(folder).absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=".dense-") as dense:
        model.save_pretrained(dense)
        pack(dense, folder, dtype)


def unpack(source: str | Path, target: str | Path) -> None:
    """Write the packed model in the folder `source` to `target`, dense as it was before `pack`.

    Raises:
        ValueError: `source` holds no packed model, or `target` holds files.
        PackedError: The packed model is damaged; the error names the file or the tensor.
    """
    source = Path(source)
    config = read_config(source)
    weights = PackedWeights(source)
    del config["quantization_config"]
    with new_folder(target) as folder:
        places: dict[str, str] = {}
        for file, names in weights.by_file().items():
            name = file.replace(_STEM, "model", 1)
            write_file(folder / name, map(weights.entry, names), read_metadata(source / file))
            places |= dict.fromkeys(names, name)
        if len(weights.by_file()) > 1:
            write_index(folder / (DENSE + INDEX), source / (PACKED + INDEX), places)
        write_json(folder / CONFIG, config, sort_keys=True)
        packed = [source / file for file in weights.by_file()]
        copy_files(other_files(source), source, folder, packed)


def load_packed(folder: str | Path, **options: Any) -> PreTrainedModel:
    """Return the model in a packed folder, of the class that was saved.

    It needs nothing of transformers but `from_pretrained(None, config=..., state_dict=...)`, which
    also gets the `options`.

    Raises:
        PackedError: The packed model is damaged; the error names the file or the tensor.
        ValueError: It was saved by a class that is not one of transformers.
    """
    weights = PackedWeights(Path(folder))
    config = read_model_config(folder)
    cls = model_class(config)
    if cls is AutoModel:
        raise ValueError(
            f"The config.json in '{folder}' names {config.architectures or 'no class'}, and not "
            "one of transformers. Import hf_cyclprune and use from_pretrained of the class itself."
        )
    del config.quantization_config
    state_dict = {name: weights.read(name) for name in weights.names}
    problem = f"{folder} does not hold the weights of the model in its config.json"
    with as_packed_error(problem, RuntimeError, what="folder"):
        model: PreTrainedModel = cls.from_pretrained(
            None, config=config, state_dict=state_dict, **{**options, **NO_CODE}
        )
    return model
