"""Which files of a model's folder belong to it, in sub-folders too, and which stay behind."""

import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path

from transformers.utils import logging

from hf_cyclprune.files import TIMES_FILES, TRAINING_FILES
from hf_cyclprune.packing.manifest import CONFIG, INDEX, read_config

logger = logging.get_logger(__name__)

TOKENIZER_FILES = (
    *("tokenizer*.json", "vocab*.json", "vocab*.txt", "merges.txt", "*.model"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.*"),
)
"""The files that from_pretrained of a tokenizer reads."""
_PICKLES = (
    *(".bin", ".pt", ".pth", ".pkl", ".pickle", ".dill", ".joblib", ".npy", ".npz", ".ckpt", ".ot"),
    *(".h5", ".msgpack"),
)
"""Endings of files that may hold code, and of other weights than those in safetensors."""
_NOT_MISSED = (
    *("training_args.bin", "optimizer*", "scheduler*", "scaler.pt", "rng_state*"),
    *("pytorch_model*", "tf_model.h5", "flax_model.msgpack", "rust_model.ot"),
)
"""Pickles beside a model's safetensors without which it is the same model."""
_TRAINING_FOLDER = re.compile(r"[._].*|checkpoint-\d+")


def model_files(folder: Path) -> list[str]:
    """Return the paths in `folder` of the files that belong to its model, weights included.

    Sub-folders are searched too: a sentence transformer keeps its other modules there. Left out are

    - pickles, and other forms of the weights;
    - what only training needs: checkpoints, masks, and all names that begin with "_"; and what was
      measured on this machine;
    - hidden folders, and sub-folders that hold a transformers model of their own;
    - links that lead out of the folder, unless they are the model's weights or config.json, or the
      folder lies in the cache of the Hub. A warning names them, and pickles that may be missed.
    """
    found: list[str] = []
    missed: dict[str, list[str]] = {_PICKLED: [], _LINKED: []}
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _is_apart(Path(place) / name)]
        for name in names:
            file = Path(place) / name
            path = file.relative_to(folder).as_posix()
            is_left = name.startswith("_") or name in (*TRAINING_FILES, *TIMES_FILES)
            if is_left or not file.is_file():
                continue
            if file.suffix.lower() in _PICKLES:
                if not any(fnmatch(path, pattern) for pattern in _NOT_MISSED):
                    missed[_PICKLED].append(path)
            elif _leads_out(file, folder) and not is_model(path):
                missed[_LINKED].append(path)
            else:
                found.append(path)
    for reason, paths in missed.items():
        if paths:
            logger.warning(reason.format(paths=", ".join(sorted(paths)), folder=folder))
    return sorted(found)


_PICKLED = (
    "In '{folder}' {paths} stay behind: pickles can hold code. If the model needs them, save it "
    "again with safetensors."
)
_LINKED = (
    "In '{folder}' {paths} stay behind: these are links to files outside of it. Put copies in "
    "their place."
)


def is_model(path: str) -> bool:
    """Return whether a path in a model's folder is that of its config.json or of weights.

    >>> [is_model(p) for p in ("config.json", "model-1-of-2.safetensors", "2_Dense/config.json")]
    [True, True, False]
    """
    is_weights = path.startswith("model") and path.endswith((".safetensors", INDEX))
    return path == CONFIG or (is_weights and "/" not in path)


def other_files(folder: Path) -> Iterator[str]:
    """Yield the paths of the files that belong to a model, but not its config.json and weights.

    Weights of an older model, which was saved to other files there, are left out too.
    """
    for path in model_files(folder):
        if not is_model(path):
            yield path


def copy_files(paths: Iterable[str], source: Path, folder: Path, weights: Collection[Path]) -> None:
    """Copy files, given by their paths in `source`, unless they hold the model's weights."""
    for path in paths:
        if source / path not in weights:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / path, folder / path)


def _is_apart(folder: Path) -> bool:
    """Return whether a sub-folder is hidden, of training, or the folder of another model."""
    if _TRAINING_FOLDER.fullmatch(folder.name):
        return True
    try:
        return "model_type" in read_config(folder)
    except ValueError:
        return False


def _leads_out(file: Path, folder: Path) -> bool:
    root, target = folder.resolve(), file.resolve()
    # a snapshot in the cache of the Hub consists of links to ../../blobs
    cache = target.parent.parent / "snapshots"
    is_cached = target.parent.name == "blobs" and root.is_relative_to(cache)
    return not target.is_relative_to(root) and not is_cached
