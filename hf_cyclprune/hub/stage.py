"""What of a model's folder is for its page on the Hub."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_cyclprune.files import STATE_NAME
from hf_cyclprune.hub.page import HIDDEN
from hf_cyclprune.packing.folder import PICKLES


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A temporary folder with links to the model's files, to which files can be added.

    Without checkpoints, masks and pickles, which only a Trainer needs; with the logs in runs/.
    """
    with tempfile.TemporaryDirectory(prefix="hf_cyclprune-") as temporary:
        stage = Path(temporary) / (folder.resolve().name or "model")
        stage.mkdir()
        for path in [*folder.glob("*"), *folder.glob("runs/**/*")]:
            place = path.relative_to(folder)
            is_hidden = place.name.startswith((HIDDEN, "."))
            is_left = is_hidden or path.name == STATE_NAME or path.suffix.lower() in PICKLES
            if path.is_file() and not is_left:
                link(path, stage / place)
        yield stage


def link(path: Path, place: Path) -> None:
    """Make `place` a link to a file, whatever lay there."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(path.resolve())
