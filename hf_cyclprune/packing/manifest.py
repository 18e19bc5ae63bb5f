"""What config.json of a packed folder says, and the names that must be there."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_cyclprune.packing.errors import PackedError

METHOD = "hf_cyclprune"
VERSION = 1
DENSE = "model.safetensors"
PACKED = "model.sparse.safetensors"
INDEX = ".index.json"


@dataclass(frozen=True)
class Manifest:
    """The entry "quantization_config": how from_pretrained knows a packed model."""

    weights: str
    """The file with the weights, or the index of its shards."""
    tensors: tuple[str, ...]
    """Names of all tensors, packed or not."""
    dtype: str | None = None
    """Of the floating-point tensors, for models whose config does not say."""

    def to_dict(self) -> dict[str, Any]:
        names = sorted(self.tensors)
        return {
            "quant_method": METHOD,
            "version": VERSION,
            "weights": self.weights,
            "dtype": self.dtype,
            "tensors": names,
        }

    @classmethod
    def from_dict(cls, values: Any, folder: Any) -> "Manifest":
        """Raises a PackedError unless the values are those of a packed model of this version."""
        if not isinstance(values, Mapping) or values.get("quant_method") != METHOD:
            raise PackedError(
                f"config.json must be that of a packed model; got '{folder}' without it. Pack it "
                "first."
            )
        if values.get("version") != VERSION:
            raise PackedError(
                f"config.json in {folder} must have format version {VERSION}; got "
                f"{values.get('version')!r}. Install a newer hf_cyclprune."
            )
        names = values.get("tensors")
        has_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
        dtype = values.get("dtype")
        has_names &= dtype in (None, "float32", "bfloat16", "float16", "float64")
        if values.get("weights") not in (PACKED, PACKED + INDEX) or not has_names:
            raise PackedError(
                f"config.json in {folder} must name the weights, their dtype and the tensors; got "
                f"{values.get('weights')!r}. Get the folder again."
            )
        return cls(values["weights"], tuple(names or ()), dtype)

    def check_names(self, folder: Any, found: Iterable[str]) -> None:
        """Raise a PackedError unless each of the tensors was found once, and no other."""
        counts = Counter(found)
        twice = {name for name, count in counts.items() if count > 1}
        odd = sorted(twice or counts.keys() ^ set(self.tensors))
        if odd:
            what = "twice" if twice else "missing" if odd[0] in self.tensors else "unlisted"
            raise PackedError(
                f"{folder} must hold each tensor that its config.json lists once, and no other; "
                f"got '{odd[0]}' {what}. Get the folder again."
            )


def read_config(folder: Path) -> dict[str, Any]:
    """config.json.

    Raises:
        ValueError: there is none, or it is not an object.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        config = error
    if not isinstance(config, dict):
        raise ValueError(
            f"the folder must hold a model's config.json; got '{folder}' without a readable one. "
            "Pass a folder that save_pretrained or pack wrote."
        )
    return config


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """As save_pretrained writes it."""
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def list_files(folder: Path, weights: str) -> list[Path]:
    """The safetensors files that a file of weights or an index stands for.

    Raises:
        ValueError: the index cannot be read.
    """
    if not weights.endswith(INDEX):
        return [folder / weights]
    try:
        index = json.loads((folder / weights).read_text(encoding="utf-8"))
        names = {Path(file).name for file in index["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PackedError(
            f"{folder / weights} must be an index of weights; got: {error!r}. Get it again."
        ) from error
    return [folder / name for name in sorted(names)]


def read_index_metadata(path: Path) -> Any:
    """What an index says beside the files, such as the size; {} where there is no index."""
    if not path.is_file():
        return {}
    return json.loads(path.read_text(encoding="utf-8")).get("metadata", {})


def write_index(path: Path, files: Mapping[str, str], metadata: Any) -> None:
    """The index of a sharded model.

    Args:
        path: the index file.
        files: name of a tensor -> name of its file.
        metadata: what the index of the model had before.
    """
    index = {"metadata": metadata, "weight_map": files}
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def dense_files(folder: Path) -> list[Path]:
    """The safetensors files of a dense model.

    Raises:
        ValueError: there are none.
    """
    for weights in (DENSE, DENSE + INDEX):
        if (folder / weights).is_file():
            return list_files(folder, weights)
    raise ValueError(
        f"the folder must hold {DENSE}; got '{folder}' without it. Pass a model saved as "
        "safetensors."
    )
