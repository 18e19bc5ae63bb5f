"""A branch of a repository on the Hub: which files a push brings, and which ones it deletes."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers.utils import logging

from hf_cyclprune.hub import page
from hf_cyclprune.packing.others import model_files
from hf_cyclprune.reporting.run import RECORD_NAME

logger = logging.get_logger(__name__)

_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
_PACKED = f"{page.SPARSE}/model.sparse*.safetensors"


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder with links to the files of a model, to which files can be added.

    `model_files` says which ones; hidden files are left out too.
    """
    with tempfile.TemporaryDirectory(prefix="hf_cyclprune-") as temporary:
        stage = Path(temporary) / (folder.resolve().name or "model")
        stage.mkdir()
        for path in model_files(folder):
            if not Path(path).name.startswith("."):
                _link(folder / path, stage / path)
        yield stage


def _link(path: Path, place: Path) -> None:
    """Make `place` a link to a file, in place of whatever it was."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(path.resolve())


def find_old(names: list[str]) -> list[str]:
    """Return the files of a branch that belong to the weights in it, and to no person.

    >>> find_old(["model.safetensors", "pictures/density.png", "pictures/mine.png", "sparse/x"])
    ['model.safetensors', 'pictures/density.png']
    """
    patterns = [*_WEIGHTS, *(f"{page.PICTURES}/{name}.png" for name in page.PICTURE_NAMES)]
    if any(fnmatch(name, _PACKED) for name in names):
        patterns.append(f"{page.SPARSE}/*")
    return [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]


@dataclass(frozen=True)
class Branch:
    """A branch of a repository, and the token to reach it with."""

    repo_id: str
    revision: str | None = None
    """The name of the branch; None is the main one."""
    token: str | None = None
    """None is the token of `hf auth login` or HF_TOKEN."""

    @property
    def _api(self) -> HfApi:
        return HfApi(token=self.token)

    def create(self) -> None:
        """Make the branch if it does not exist; the main one and pull requests always do."""
        if self.revision is not None and not self.revision.startswith("refs/"):
            self._api.create_branch(self.repo_id, branch=self.revision, exist_ok=True)

    def upload(self, folder: Path, message: str) -> None:
        """Add the files of a folder and delete those of other weights, in one commit."""
        self._api.upload_folder(
            repo_id=self.repo_id,
            folder_path=folder,
            commit_message=message,
            revision=self.revision,
            delete_patterns=self._old(),
        )

    def _old(self) -> list[str]:
        return find_old(self._api.list_repo_files(self.repo_id, revision=self.revision))

    def replace_old(self, source: Path, folder: Path, message: str) -> None:
        """Upload the model first if a push by `Trainer` would leave files of other weights.

        The new model lies in `source`; its card and record, and its pictures and packed copy if
        there are any, in `folder`.
        """
        places = ((folder if "/" in name else source) / name for name in self._old())
        if all(place.is_file() for place in places):
            return
        with staged(source) as stage:
            extras = [*folder.glob(f"{page.SPARSE}/*"), *folder.glob(f"{page.PICTURES}/*")]
            for path in [folder / page.CARD_NAME, folder / RECORD_NAME, *extras]:
                _link(path, stage / path.relative_to(folder))
            self.upload(stage, message)

    def keep_card(self, folder: Path) -> None:
        """Copy a person's README.md from the branch into `folder`, unless one is there already."""
        here = folder / page.CARD_NAME
        wanted: Any = {"repo_id": self.repo_id, "filename": here.name, "revision": self.revision}
        if page.is_by_person(here) or not self._api.file_exists(**wanted):
            return
        with tempfile.TemporaryDirectory() as place:
            found = Path(self._api.hf_hub_download(**wanted, local_dir=place))
            if not page.is_by_person(found):
                return
            here.unlink(missing_ok=True)  # may be a link
            here.write_bytes(found.read_bytes())
        logger.warning(f"The {here.name} of {self.repo_id} on the Hub is kept: a person wrote it.")
