"""The model card and the pushes of a Trainer: all files of a push describe the weights in it."""

import inspect
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import HfApi
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

from hf_cyclprune.card.card import Card
from hf_cyclprune.engines.shards import shape_of
from hf_cyclprune.hub.errors import PushError, explain, explained
from hf_cyclprune.hub.page import CARD_NAME, add_extras, copy_records, remove_extras, write_card
from hf_cyclprune.hub.remote import Branch
from hf_cyclprune.reporting.folder import read_dense_metrics
from hf_cyclprune.training.counts import SAVE_WHOLE
from hf_cyclprune.training.describe import bare_model, describe, find_model_id
from hf_cyclprune.training.evaluations import Evaluations
from hf_cyclprune.training.run import PruningRun
from hf_cyclprune.training.saving import ModelSaver
from hf_cyclprune.training.upstream import take_failures


class FinalPush(NamedTuple):
    """What the caller of push_to_hub asked for."""

    message: str
    token: str | None
    revision: str | None
    is_packed: bool
    """Whether to add a packed copy of the weights."""


def repo_name(trainer: Trainer) -> str:
    """Return the id of a Trainer's repository, or the name from which it will be made."""
    name = trainer.args.hub_model_id or Path(str(trainer.args.output_dir)).absolute().name
    return str(getattr(trainer, "hub_model_id", None) or name)


def branch_of(trainer: Trainer, token: str | None = None, revision: str | None = None) -> Branch:
    """Return where a Trainer pushes to; its arguments stand in for None."""
    revision = revision if revision is not None else trainer.args.hub_revision
    token = token if token is not None else trainer.args.hub_token
    return Branch(repo_name(trainer), revision, token)


class Publisher:
    """Writes the card of a pruned model, and prepares the folder and the branch for every push."""

    def __init__(self, trainer: Trainer, saver: ModelSaver, evaluations: Evaluations) -> None:
        self._trainer: Any = trainer
        self._saver = saver
        self._evaluations = evaluations
        has_class = trainer.optimizer_cls_and_kwargs is not None
        self._has_own_optimizer = has_class or trainer.optimizer is not None
        self._base_model = find_model_id(trainer.model)
        """Found now: later a folder may come or go for which a name on the Hub is mistaken."""
        self._card_options: dict[str, Any] = {}
        """The arguments of create_model_card, by name, from all calls so far."""
        self._dense_metrics: dict[str, float] = {}
        """The metrics of a dense run that the card compares with."""
        self._is_branch_clean = False
        """Whether the branch holds nothing that a push by `Trainer` would leave behind."""

    @property
    def _folder(self) -> Path:
        return Path(str(self._trainer.args.output_dir))

    def take_options(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], dataset_metadata: Any
    ) -> None:
        """Remember the arguments of create_model_card, for this card and later ones."""
        bound = inspect.signature(Trainer.create_model_card).bind(None, *args, **kwargs).arguments
        options = {**bound, "dataset_metadata": dataset_metadata}
        self._card_options |= {name: value for name, value in options.items() if value is not None}

    def describe(
        self,
        run: PruningRun,
        metrics: dict[str, float] | None = None,
        dense_run: str | Path | None = None,
    ) -> Card:
        """Return what a card can say of the model that a run has pruned, as it is now.

        Arguments as in `PruningTrainer.create_model_card`.

        Raises:
            ValueError: `dense_run` has no metrics to compare with.
        """
        trainer, model = self._trainer, bare_model(self._trainer)
        metrics = metrics if metrics is not None else self._evaluations.latest()
        if dense_run is not None:
            self._dense_metrics = read_dense_metrics(dense_run, metrics)
        record = describe(
            trainer,
            self._has_own_optimizer,
            weights_step=self._evaluations.weights_step,
            base_model=self._base_model,
            metrics=metrics,
            card=self._card_options,
            dense_metrics=self._dense_metrics,
            restarts_lr=run.history.restarts_lr,
            is_plan_kept=run.history.is_plan_kept,
            reach=run.history.reach,
        )
        name = self._card_options.get("model_name") or repo_name(trainer).rpartition("/")[2]
        return Card(
            model_name=name,
            report=run.counts.of_saved(model, run.history.cycles),
            config=run.config,
            record=record,
            repo_id=getattr(trainer, "hub_model_id", None),
            model_class=type(model).__name__,
            num_parameters=sum(prod(shape_of(parameter)) for parameter in model.parameters()),
        )

    def describe_if_known(self, run: PruningRun | None) -> Card | None:
        """Return what `describe` does; None without a run.

        Of weights that are divided among processes it describes the whole ones that were saved
        last; None in a process that did not write them.
        """
        return self.describe(run) if run is not None and run.counts.are_saved_known else None

    def write_card(
        self,
        run: PruningRun,
        metrics: dict[str, float] | None,
        dense_run: str | Path | None,
        push: FinalPush | None,
    ) -> None:
        """Write README.md and the record for the model in output_dir; arguments as in `describe`.

        For a push, which uploads output_dir, also the packed copy and the pictures.
        """
        card = self.describe(run, metrics, dense_run)
        self._saver.save_record(card.record, self._folder)
        if push is None:
            write_card(self._folder, card)
            return
        self._is_branch_clean = False  # a packed copy will be there
        add_extras(self._folder, push.is_packed)
        branch = branch_of(self._trainer, push.token, push.revision)
        self._write_page(self._folder, card, self._folder, branch, push.message)

    def create_place(self, push: FinalPush, private: bool | None) -> None:
        """Create the repository and the branch of a push, if they are not there."""
        trainer = self._trainer
        if not trainer.is_world_process_zero():
            return
        if getattr(trainer, "hub_model_id", None) is None:
            # here, since init_hf_repo of transformers 5.0.0 does not take `private`
            private = private if private is not None else trainer.args.hub_private_repo
            branch = branch_of(trainer, push.token)
            HfApi(token=branch.token).create_repo(branch.repo_id, private=private, exist_ok=True)
            trainer.init_hf_repo(push.token)
        if push.revision is not None:
            branch_of(trainer, push.token, push.revision).create()

    def prepare_checkpoint_push(self, run: PruningRun | None, checkpoint: Path) -> bool:
        """Put the card and what describes a checkpoint into output_dir; return whether to push it.

        `Trainer` adds the weights. If the Hub fails, warns and leaves output_dir as it was.
        """
        if run is None:
            return True
        if not self._is_ready():
            return False
        card, folder = self.describe_if_known(run), self._folder
        if card is None:
            warnings.warn(f"A checkpoint has no whole weights to push. {SAVE_WHOLE}", stacklevel=2)
            return False
        message = f"Training in progress, step {self._trainer.state.global_step}"
        try:
            with tempfile.TemporaryDirectory(dir=folder, prefix="_page-") as temporary:
                page = Path(temporary)
                copy_records(checkpoint, page)
                self._saver.save_record(card.record, page)
                if (folder / CARD_NAME).is_file():
                    shutil.copyfile(folder / CARD_NAME, page / CARD_NAME)
                self._write_page(page, card, checkpoint, branch_of(self._trainer), message)
                remove_extras(folder)  # of other weights
                for path in page.iterdir():
                    os.replace(path, folder / path.name)
        except PushError as error:
            warnings.warn(f"A push failed while training goes on: {error}", stacklevel=2)
            return False
        self._is_branch_clean = True
        return True

    def _is_ready(self) -> bool:
        """Whether a checkpoint is to be pushed and no push is going on, which may be waited for."""
        trainer = self._trainer
        if not trainer.is_world_process_zero() or trainer.args.hub_strategy == HubStrategy.END:
            return False
        self.warn_of_failures()
        if trainer.args.hub_always_push:  # else it would send files that are being written
            trainer._finish_current_push()
        return trainer.push_in_progress is None or bool(trainer.push_in_progress.is_done())

    def _write_page(
        self, page: Path, card: Card, weights: Path, branch: Branch, message: str
    ) -> None:
        """Write the card for a push, and delete from the branch what must go before it."""
        with explained(repo_name(self._trainer)):
            if not self._is_branch_clean:
                branch.keep_card(page)
            write_card(page, card, weights)
            if not self._is_branch_clean:
                branch.replace_old(weights, page, message)

    def watch(self, job: Any) -> None:
        """Let the next push wait for one in the background, and warn if that one fails."""
        if job is not None:  # only the first process has one
            jobs: Any = [job]  # the others are done, push_to_hub has waited for them
            self._trainer.push_in_progress = PushInProgress(jobs)
            job.add_done_callback(lambda _: self.warn_of_failures())

    def warn_of_failures(self) -> None:
        """Warn of pushes in the background that failed."""
        for error in take_failures(getattr(self._trainer, "push_in_progress", None)):
            reason = explain(repo_name(self._trainer), error)
            warnings.warn(f"A push in the background failed: {reason}", stacklevel=3)
