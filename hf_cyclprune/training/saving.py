"""Saving a model over another one: no file is ever half of one.

What is killed in the middle leaves the old model or the new one, if the weights are one file; of
several, shards of both may lie there.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "_saving-"
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
    for leftover in folder.glob(f"{_PREFIX}*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=_PREFIX) as temporary:
        new = Path(temporary)
        yield new
        written = _weights(new)
        stale = _weights(folder) - {folder / path.name for path in written}
        files = [path for path in new.rglob("*") if path.is_file()]
        # an index after its shards, and all that is new before what is old goes
        for path in sorted(files, key=lambda path: (path not in written, path.suffix == ".json")):
            place = folder / path.relative_to(new)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)
        for path in stale:
            path.unlink()


def _weights(folder: Path) -> set[Path]:
    if not folder.is_dir():
        return set()
    return {path for path in folder.iterdir() if _WEIGHTS.fullmatch(path.name)}
