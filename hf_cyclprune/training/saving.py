"""Saving a model over another one: on disk is the old one or the new one, never half of one."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


def holds_weights(folder: Path) -> bool:
    """Whether there is something to lose."""
    return bool(_weights(folder))


@contextmanager
def saved_whole(folder: Path) -> Iterator[Path]:
    """A new folder; its files take their places in `folder` when all of them are there.

    Both models need room on the disk at the same time. Weights of the old one whose names the new
    one has not go: from_pretrained would take them.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix="_saving-") as temporary:
        new = Path(temporary)
        yield new
        for path in _weights(folder) - {folder / path.name for path in _weights(new)}:
            path.unlink()
        for path in sorted(path for path in new.rglob("*") if path.is_file()):
            place = folder / path.relative_to(new)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)


def _weights(folder: Path) -> set[Path]:
    if not folder.is_dir():
        return set()
    return {path for path in folder.iterdir() if _WEIGHTS.fullmatch(path.name)}
