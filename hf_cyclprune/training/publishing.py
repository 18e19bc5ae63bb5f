"""Pushing while and after training: every push carries the facts of the weights in it."""

import dataclasses
import inspect
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

from hf_cyclprune.card.card import Card
from hf_cyclprune.hub.errors import PushError, explain, explained
from hf_cyclprune.hub.page import (
    CARD_NAME,
    add_extras,
    copy_record_files,
    find_license,
    remove_extras,
    write_card,
)
from hf_cyclprune.hub.remote import Branch
from hf_cyclprune.reporting.folder import read_dense_metrics
from hf_cyclprune.training.recording import RecordingTrainer


@dataclass(frozen=True)
class _Push:
    """One that is being prepared."""

    message: str
    token: str | None = None
    revision: str | None = None
    checkpoint: Path | None = None
    """The weights; None for those in output_dir, in a final push, which has pictures."""
    is_packed: bool = False


class PushingTrainer(RecordingTrainer):
    """A Trainer whose repository on the Hub tells what its weights are.

    Without facts (`card_facts`) it pushes what `Trainer` does.
    """

    _push: _Push | None = None
    _is_branch_clean = False
    """Whether the branch holds nothing that a push by `Trainer` would leave behind."""

    @property
    def _repo_name(self) -> str:
        name = self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name
        return str(getattr(self, "hub_model_id", None) or name)

    def _branch(self, token: str | None = None, revision: str | None = None) -> Branch:
        """Where a push goes to; None is what the arguments say."""
        revision = revision if revision is not None else self.args.hub_revision
        token = token if token is not None else self.args.hub_token
        return Branch(self._repo_name, revision, token)

    def init_hf_repo(self, token: str | None = None, *args: Any, **kwargs: Any) -> None:
        with explained(self._repo_name):
            super().init_hf_repo(token, *args, **kwargs)
            if self.is_world_process_zero():
                self._branch(token).create()

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        *,
        packed: bool = True,
        **kwargs: Any,
    ) -> Any:
        """As in `Trainer`, with pictures and a packed copy of the weights in `sparse/`.

        Args:
            commit_message, blocking, token, revision, private: as in `Trainer`; a revision that is
                not there is made.
            packed: whether to add `sparse/`.
            **kwargs: for `create_model_card`.

        Raises:
            PushError: the Hub cannot be reached, refuses, or fails; nothing is lost.
        """
        self._finish_current_push()  # its files are about to be written again
        self._is_branch_clean = False  # a packed copy will be there
        push = _Push(commit_message or "Upload model", token, revision, is_packed=packed)
        with explained(self._repo_name), self._preparing(push):
            if self.is_world_process_zero():
                self._create_place(token, revision, private)
            result = super().push_to_hub(commit_message, blocking, token, revision, **kwargs)
        if not blocking and result is not None:
            self._watch(result)
        return result

    @contextmanager
    def _preparing(self, push: _Push) -> Iterator[None]:
        self._push = push
        try:
            yield
        finally:
            self._push = None

    def _create_place(self, token: str | None, revision: str | None, private: bool | None) -> None:
        """The repository and the branch, if they are not there."""
        if getattr(self, "hub_model_id", None) is None:
            private = private if private is not None else self.args.hub_private_repo
            options: dict[str, Any] = {"private": private, "exist_ok": True}
            options["token"] = token if token is not None else self.args.hub_token
            HfApi().create_repo(self._repo_name, **options)
            self.init_hf_repo(token)
        if revision is not None:
            self._branch(token, revision).create()

    def _watch(self, future: Any) -> None:
        """Let the next push wait for one in the background; tell if it fails."""
        jobs: Any = [future]  # the others are done, push_to_hub has waited for them
        running: Any = PushInProgress(jobs)
        self.push_in_progress = running
        future.add_done_callback(lambda _: self._warn_of_failed_push())

    def create_model_card(
        self,
        *args: Any,
        metrics: dict[str, float] | None = None,
        dense_run: str | Path | None = None,
        dataset_metadata: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write README.md into output_dir: as in `Trainer`, or what is known of a pruned model.

        A README.md that a person wrote stays.

        Args:
            *args: as in `Trainer`, as are `kwargs`.
            metrics: of the model as it is now, in place of those that were logged.
            dense_run: the output_dir of a dense run of the same task, to compare with.
            dataset_metadata: "config" and "split" of the dataset that the metrics are of.

        Raises:
            ValueError: `dense_run` is not one.
        """
        facts = self.card_facts()
        if facts is None:
            super().create_model_card(*args, **kwargs)
            return
        if not self.is_world_process_zero():
            return
        named = inspect.signature(Trainer.create_model_card).bind(self, *args, **kwargs).arguments
        del named["self"]
        named["dataset_metadata"] = dataset_metadata
        self.said |= {name: value for name, value in named.items() if value is not None}
        record = facts.record
        if metrics is not None:
            record = dataclasses.replace(record, metrics=metrics)
        if dense_run is not None:
            self.dense_metrics = read_dense_metrics(dense_run, record.metrics)
        record = dataclasses.replace(record, card=self.said, dense_metrics=self.dense_metrics)
        facts = dataclasses.replace(
            facts,
            record=record,
            model_name=self.said.get("model_name", facts.model_name),
            license=find_license(record.base_model),
        )
        folder = Path(str(self.args.output_dir))
        if self._push is None:
            self.save_record(record, folder)
            write_card(folder, facts)
        elif self._push.checkpoint is None:
            self.save_record(record, folder)
            add_extras(folder, self._push.is_packed)
            self._write_page(folder, facts, self._push, folder)
        else:
            self._write_page_of_checkpoint(folder, facts, self._push, self._push.checkpoint)

    def _write_page_of_checkpoint(
        self, folder: Path, facts: Card, push: _Push, checkpoint: Path
    ) -> None:
        """In `folder` its facts and weights come together, or neither if the Hub fails."""
        with tempfile.TemporaryDirectory(dir=folder, prefix="_page-") as temporary:
            page = Path(temporary)
            copy_record_files(checkpoint, page)
            self.save_record(facts.record, page)
            if (folder / CARD_NAME).is_file():
                shutil.copyfile(folder / CARD_NAME, page / CARD_NAME)
            self._write_page(page, facts, push, checkpoint)
            remove_extras(folder)  # of other weights
            for path in page.iterdir():
                os.replace(path, folder / path.name)

    def _write_page(self, page: Path, facts: Card, push: _Push, weights: Path) -> None:
        """The card for a push, and what must go from the branch before it."""
        branch = self._branch(push.token, push.revision)
        with explained(self._repo_name):
            if not self._is_branch_clean:
                branch.keep_card(page)
            write_card(page, facts, weights)
            if not self._is_branch_clean:
                branch.replace_old(weights, page, push.message)
        self._is_branch_clean = push.checkpoint is not None

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        is_pushed = self.is_world_process_zero() and self.args.hub_strategy != HubStrategy.END
        if is_pushed and self.has_facts:
            self._warn_of_failed_push()
            if self.args.hub_always_push:
                self._finish_current_push()  # or it would send files that are being written
            running: Any = self.push_in_progress
            if running is not None and not running.is_done():
                return
            message = f"Training in progress, step {self.state.global_step}"
            try:
                with self._preparing(_Push(message, checkpoint=Path(checkpoint_folder))):
                    self.create_model_card()
            except PushError as error:
                warnings.warn(f"A push failed while training goes on: {error}", stacklevel=2)
                return
        super()._push_from_checkpoint(checkpoint_folder)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        self._warn_of_failed_push()

    def _warn_of_failed_push(self) -> None:
        """The Trainer does not look at what became of a push in the background."""
        push = getattr(self, "push_in_progress", None)
        if push is None:
            return
        failed = [
            job for job in push.jobs if job.done() and not job.cancelled() and job.exception()
        ]
        push.jobs = [job for job in push.jobs if job not in failed]
        for job in failed:
            reason = explain(self._repo_name, job.exception())
            warnings.warn(f"A push in the background failed: {reason}", stacklevel=3)
