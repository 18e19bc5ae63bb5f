"""A branch of a repository: what must go from it in a push, and what must stay."""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi
from transformers.utils import logging

from hf_cyclprune.hub.page import (
    CARD_NAME,
    PICTURE_NAMES,
    PICTURES,
    SPARSE,
    is_generated,
    read_card,
)
from hf_cyclprune.hub.stage import link, staged
from hf_cyclprune.reporting.run import RECORD_NAME

logger = logging.get_logger(__name__)

_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
_PACKED = f"{SPARSE}/model.sparse*.safetensors"


def find_old(there: Iterable[str]) -> list[str]:
    """Of a branch's files those that belong to the weights in it: ours, and no person's.

    >>> find_old(["model.safetensors", "pictures/density.png", "pictures/mine.png", "sparse/x"])
    ['model.safetensors', 'pictures/density.png']
    """
    names = list(there)
    patterns = [*_WEIGHTS, *(f"{PICTURES}/{name}.png" for name in PICTURE_NAMES)]
    if any(fnmatch(name, _PACKED) for name in names):
        patterns.append(f"{SPARSE}/*")
    return [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]


@dataclass(frozen=True)
class Branch:
    """A branch of a repository, and the token to reach it with."""

    repo_id: str
    revision: str | None = None
    """None is the main one."""
    token: str | None = None
    """None is that of `hf auth login` or HF_TOKEN."""

    @property
    def _api(self) -> HfApi:
        return HfApi(token=self.token)

    def create(self) -> None:
        """Make the branch if it is not there; the main one and pull requests are."""
        if self.revision is not None and not self.revision.startswith("refs/"):
            self._api.create_branch(self.repo_id, branch=self.revision, exist_ok=True)

    def upload(self, folder: Path, message: str) -> None:
        """One commit: the files of a folder come, and what belongs to other weights goes."""
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
        """Where a push by `Trainer` would leave files of other weights, replace the model first.

        Args:
            source: the folder with the new model.
            folder: with its card and record, its pictures and packed copy if there are any.
            message: of the commit.
        """
        places = ((folder if "/" in name else source) / name for name in self._old())
        if all(place.is_file() for place in places):
            return
        with staged(source) as stage:
            extras = [*folder.glob(f"{SPARSE}/*"), *folder.glob(f"{PICTURES}/*")]
            for path in [folder / CARD_NAME, folder / RECORD_NAME, *extras]:
                link(path, stage / path.relative_to(folder))
            self.upload(stage, message)

    def keep_card(self, folder: Path) -> None:
        """Put a person's README.md from the Hub into `folder`, unless a person wrote that one too.

        It is not written over.
        """
        here = folder / CARD_NAME
        is_mine = here.is_file() and not is_generated(read_card(here))
        if is_mine or not self._has_card():
            return
        with tempfile.TemporaryDirectory() as place:
            found = Path(
                self._api.hf_hub_download(
                    self.repo_id, CARD_NAME, revision=self.revision, local_dir=place
                )
            )
            if is_generated(read_card(found)):
                return
            here.unlink(missing_ok=True)  # may be a link
            here.write_bytes(found.read_bytes())
        logger.warning(f"The {CARD_NAME} of {self.repo_id} on the Hub was taken over.")

    def _has_card(self) -> bool:
        return self._api.file_exists(self.repo_id, CARD_NAME, revision=self.revision)
