"""The entry of a packed model in config.json, and the files with weights in a folder."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from hf_cyclprune.files import read_json, write_json
from hf_cyclprune.packing.errors import PackedError

QUANT_METHOD = "hf_cyclprune"
VERSION = 1
DENSE = "model.safetensors"
PACKED = "model.sparse.safetensors"
INDEX = ".index.json"
CONFIG = "config.json"
_DTYPES = (None, "float32", "bfloat16", "float16", "float64")


class Manifest(NamedTuple):
    """The entry "quantization_config", by which from_pretrained recognizes a packed model."""

    weights: str
    """The name of the file with the weights, or of the index of its shards."""
    tensors: tuple[str, ...]
    """The names of all tensors, packed or not."""
    dtype: str | None = None
    """The dtype of the floating-point tensors, for models whose config does not have it."""

    def to_dict(self) -> dict[str, Any]:
        """Return the entry."""
        return {
            "quant_method": QUANT_METHOD,
            "version": VERSION,
            "weights": self.weights,
            "dtype": self.dtype,
            "tensors": sorted(self.tensors),
        }

    @classmethod
    def from_dict(cls, values: object, folder: str | Path) -> "Manifest":
        """Check the entry in the config.json of `folder`.

        Raises:
            PackedError: It is missing, damaged or of a newer version.
        """
        if not is_packed(values):
            raise PackedError(f"The model in {folder} is not packed. Pack it first.")
        if values.get("version") != VERSION:
            raise PackedError(
                f"config.json in {folder} has format version {values.get('version')!r}, and this "
                f"reader knows {VERSION}. Install a newer hf_cyclprune."
            )
        weights, names, dtype = (values.get(key) for key in ("weights", "tensors", "dtype"))
        is_intact = weights in (PACKED, PACKED + INDEX) and dtype in _DTYPES
        if not is_intact or not isinstance(names, list) or {*map(type, names)} - {str}:
            raise PackedError(
                f"config.json in {folder} is damaged: its quantization_config must name the file "
                f"of the weights ({weights!r}), their dtype ({dtype!r}) and all tensors. "
                "Download the folder again."
            )
        return cls(str(weights), tuple(names), dtype)

    def check_names(self, folder: str | Path, found: Iterable[str]) -> None:
        """Raise a PackedError unless each of the tensors was found once, and no other."""
        counts = Counter(found)
        repeated = {name for name, count in counts.items() if count > 1}
        for name in sorted(repeated or counts.keys() ^ set(self.tensors)):
            missing = "missing" if name in self.tensors else "not listed"
            raise PackedError(
                f"{folder} does not hold the tensors that its config.json lists: '{name}' is "
                f"{'there twice' if repeated else missing}. Download the folder again."
            )


def is_packed(entry: object) -> TypeGuard[Mapping[str, Any]]:
    """Return whether an entry "quantization_config" is that of a packed model."""
    return isinstance(entry, Mapping) and entry.get("quant_method") == QUANT_METHOD


def forget_packed_(model: object) -> None:
    """Take the mark of a packed folder off a dense model that was built from the config there."""
    config: Any = getattr(model, "config", None)
    if is_packed(getattr(config, "quantization_config", None)):
        del config.quantization_config


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of config.json.

    Raises:
        ValueError: It is missing or damaged.
    """
    try:
        return read_json(folder / CONFIG, "Pass a folder that holds a saved model.")
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error


def list_files(folder: Path, weights: str) -> list[Path]:
    """Return the safetensors files of a model, by the name of the only one or of their index.

    Raises:
        PackedError: The index is missing or damaged.
    """
    if not weights.endswith(INDEX):
        return [folder / weights]
    try:
        index = read_json(folder / weights, "Download the folder again.")
        names = {Path(file).name for file in index["weight_map"].values()}
    except (OSError, ValueError) as error:
        raise PackedError(str(error)) from error
    except (KeyError, TypeError, AttributeError) as error:
        raise PackedError(
            f"{weights} in '{folder}' is not an index of weights ({error!r}). "
            "Download the folder again."
        ) from error
    return [folder / name for name in sorted(names)]


def write_index(path: Path, old: Path, files: Mapping[str, str]) -> None:
    """Write an index with the metadata of the `old` one and the name of the file of each tensor."""
    metadata = read_json(old).get("metadata", {})
    write_json(path, {"metadata": metadata, "weight_map": files}, sort_keys=True)


def dense_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a dense model.

    Raises:
        ValueError: There are none.
    """
    for weights in (DENSE, DENSE + INDEX):
        if (folder / weights).is_file():
            return list_files(folder, weights)
    raise ValueError(
        f"There is no {DENSE} in '{folder}'. Pass a folder with a model saved as safetensors."
    )
