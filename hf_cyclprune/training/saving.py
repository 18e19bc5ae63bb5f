"""Saving a model, with what it is, over another one: no file is ever half of one.

A crash leaves the old model or the new one if the weights are one file; if they are several, it may
leave shards of both.
"""

import dataclasses
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from hf_cyclprune.card.card import Card
from hf_cyclprune.config_file import save_config
from hf_cyclprune.hub.page import remove_extras
from hf_cyclprune.packing.weights import fingerprint
from hf_cyclprune.reporting.run import RunRecord

_PREFIX = "_saving-"
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


class ModelSaver:
    """Saves config, report and record of a pruned model beside its weights."""

    def __init__(self) -> None:
        self._step: int | None = None
        """The optimizer step whose weights were saved last."""
        self._fingerprint: int | None = None
        """Their checksum; None where it cannot be had."""

    def save(self, folder: Path, write: Callable[[str], None], card: Card | None) -> None:
        """Save a model into a folder, in the place of one that may be there.

        `write` saves what `Trainer` does into a folder; a card, which describes the weights, adds
        config, report and record.
        """
        is_over_another = bool(find_weights(folder))
        with saved_whole(folder) if is_over_another else nullcontext(folder) as place:
            write(str(place))
            if card is not None:
                save_config(card.config, place)
                card.report.save(place)
                checksum = None
                with suppress(ValueError):  # anything but a model, such as an adapter, has none
                    checksum = fingerprint(place)
                self._step, self._fingerprint = card.record.weights_step, checksum
                self.save_record(card.record, place)
        if is_over_another:
            remove_extras(folder)  # of the weights before

    def save_record(self, record: RunRecord, folder: Path) -> None:
        """Write pruning_run.json if the record is about the weights that were saved last."""
        if self._step is not None and self._step == record.weights_step:
            dataclasses.replace(record, fingerprint=self._fingerprint).save(folder)


@contextmanager
def saved_whole(folder: Path) -> Iterator[Path]:
    """Yields a new folder whose files take their places in `folder` when all of them are there.

    Both models need room on the disk at the same time. Weights of the old one whose names the new
    one does not have are deleted, since from_pretrained would read them.
    """
    for leftover in folder.glob(f"{_PREFIX}*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=_PREFIX) as temporary:
        new = Path(temporary)
        yield new
        written = find_weights(new)
        stale = find_weights(folder) - {folder / path.name for path in written}
        files = [path for path in new.rglob("*") if path.is_file()]
        # an index after its shards, and all that is new before what is old goes
        for path in sorted(files, key=lambda path: (path not in written, path.suffix == ".json")):
            place = folder / path.relative_to(new)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)
        for path in stale:
            path.unlink()


def find_weights(folder: Path) -> set[Path]:
    """Return the files with the weights of the model in a folder; none if there is no model."""
    if not folder.is_dir():
        return set()
    return {path for path in folder.iterdir() if _WEIGHTS.fullmatch(path.name)}
