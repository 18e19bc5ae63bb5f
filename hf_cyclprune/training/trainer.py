"""PruningTrainer: the Trainer of transformers, with what a callback that prunes cannot do."""

import inspect
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import Trainer

from hf_cyclprune.card.card import Card
from hf_cyclprune.config import PruningConfig
from hf_cyclprune.hub.errors import explained
from hf_cyclprune.pruning.pruner import Pruner
from hf_cyclprune.reporting.report import SparsityReport
from hf_cyclprune.secrets import hide_token
from hf_cyclprune.training import upstream
from hf_cyclprune.training.across import resumed_across
from hf_cyclprune.training.callback import PruningCallback, find_callback, with_callback
from hf_cyclprune.training.damage import checkpoint_folder, checkpoint_to_resume
from hf_cyclprune.training.describe import bare_model
from hf_cyclprune.training.distillation import Distillation
from hf_cyclprune.training.evaluations import Evaluations
from hf_cyclprune.training.lr import make_scheduler
from hf_cyclprune.training.prerequisites import has_inflated_loss, prepare_trainer
from hf_cyclprune.training.publishing import FinalPush, Publisher, branch_of, repo_name
from hf_cyclprune.training.resume import check_all_loaded
from hf_cyclprune.training.run import PruningRun
from hf_cyclprune.training.saving import ModelSaver
from hf_cyclprune.training.search import options_of_trial
from hf_cyclprune.training.stopping import StopGate, left_masked


class PruningTrainer(Trainer):
    """A drop-in replacement for `Trainer` that prunes in cycles while it trains.

    What to prune comes from `pruning_config=` or `PruningArguments`; with neither it trains as
    `Trainer` does. While it prunes, the learning rate restarts if the method wants it; log
    entries hold sparsity and cycle; only evaluations at the target sparsity count for the best
    model and early stopping, which waits for the end of a cycle; checkpoints hold the masks and
    resume bit for bit (CPU, fp32, one process); pushes carry the report and a card. A `teacher`, a
    model or its place, gives a part of the loss. A callback's `on_loss(loss)` sees every batch's.

    Raises:
        ValueError: a config or teacher given twice, a teacher or a schedule that does not fit.
    """

    def __init__(
        self,
        *args: Any,
        pruning_config: PruningConfig | None = None,
        teacher: nn.Module | str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        named = inspect.signature(Trainer).bind_partial(*args).arguments
        kwargs = dict(**named, **kwargs)  # a TypeError if an argument is given twice
        kwargs["callbacks"] = with_callback(pruning_config, **kwargs)
        hide_token(kwargs.get("args"))
        super().__init__(**kwargs)
        self.evaluations = Evaluations(self)
        self.saver = ModelSaver()
        self.publisher = Publisher(self, self.saver, self.evaluations)
        self.stop_gate = StopGate(lambda: self.pruner)
        self.distillation = Distillation.find(self, teacher)
        self._stock_accepts_loss_kwargs = self.model_accepts_loss_kwargs
        self._prepare_run()

    def _prepare_run(self) -> PruningConfig | None:
        """Check and set what depends on the config, which may have changed, and return it."""
        config, is_unscaled = None, self.distillation is not None and has_inflated_loss(self)
        if self.pruning_callback is not None:
            self.stop_gate.move_last(self.callback_handler)
            config = self.pruning_callback.active_config(self.args)
        if config is not None:
            is_unscaled = prepare_trainer(self, config)
        self.model_accepts_loss_kwargs = self._stock_accepts_loss_kwargs and not is_unscaled
        return config

    @property
    def pruning_callback(self) -> PruningCallback | None:
        """The callback that prunes; None without one. A resumed Trainer may have replaced it."""
        return find_callback(self.callback_handler.callbacks)

    @property
    def pruning_run(self) -> PruningRun | None:
        """The run that prunes, from the start of training on; None if nothing is pruned."""
        callback = self.pruning_callback
        return callback.run if callback is not None else None

    @property
    def pruner(self) -> Pruner | None:
        """Masks and schedule in force, from the start of training on."""
        return self.pruning_run.pruner if self.pruning_run is not None else None

    def sparsity_report(self) -> SparsityReport | None:
        """Count the zeros now, and add the cycles so far; all processes must call it together."""
        return self.pruning_run.report(bare_model(self)) if self.pruning_run is not None else None

    def model_card(self) -> Card | None:
        """Return what a card can say of the model now; None where it is not known (or pruned)."""
        return self.publisher.describe_if_known(self.pruning_run)

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Train as `Trainer` does; `True` resumes from the newest checkpoint that is whole."""
        resume_from_checkpoint = checkpoint_to_resume(self.args, resume_from_checkpoint)
        if self.pruning_callback is not None:
            self.pruning_callback.join_pruning_trainer(resume_from_checkpoint)
        self._prepare_run()
        self.evaluations.forget()
        across = resumed_across(self, resume_from_checkpoint)
        with left_masked(self), options_of_trial(self, *args, **kwargs), across:
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        config = self._prepare_run()
        if self.lr_scheduler is None and config is not None and config.restarts_lr:
            optimizer = optimizer or self.optimizer
            self.lr_scheduler = make_scheduler(self.args, optimizer, config, num_training_steps)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = partial(super().compute_loss, model)
        if self.distillation is not None and model.training:  # an evaluation has the labels' loss
            return self.distillation.teach(model, loss, *args, **kwargs)
        return loss(*args, **kwargs)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step >= self.state.max_steps:  # the checkpoint of the last step
            return upstream.NO_BATCH
        return super().get_batch_samples(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)
        for callback in filter(lambda c: hasattr(c, "on_loss"), self.callback_handler.callbacks):
            callback.on_loss(loss)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        run, step = self.pruning_run, self.state.global_step
        own = run.log_values(step, is_training="loss" in logs) if run is not None else {}
        shown = {**logs, **own}
        super().log(shown, start_time)
        # Not into the caller's dict: evaluate() returns it, and a search would optimize their sum.
        logs.update({name: value for name, value in shown.items() if name not in own})

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self.stop_gate.held_patience(self.callback_handler, self.is_in_train):
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        self.evaluations.add(metrics, bool(args) or kwargs.get("eval_dataset") is not None)
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        return not self.stop_gate.is_off_target and super()._determine_best_metric(metrics, trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = checkpoint_folder(self._get_output_dir(trial=trial), self.state)
        self.stop_gate.is_preempted |= upstream.is_preempted(folder)
        if self.args.should_save:
            upstream.forget_state(folder)
        if self.pruning_run is not None:
            step = self.state.global_step
            self.pruning_run.save(folder, step, is_writer=self.args.should_save)
        with upstream.own_names(bare_model(self)):
            super()._save_checkpoint(model, trial)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        super()._issue_warnings_after_load(load_result)  # it also ties weights
        check_all_loaded(bare_model(self), load_result.missing_keys, load_result.unexpected_keys)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        hide_token(self.args)
        if self.pruning_run is not None:
            is_shared = getattr(self, "is_distributed_loading_by_transformers", False)
            self.pruning_run.prepare_saving(state_dict, is_everybody_here=is_shared)
        folder = Path(output_dir if output_dir is not None else str(self.args.output_dir))
        write = partial(super()._save, state_dict=state_dict)
        if self.args.should_save:
            self.saver.save(folder, write, self.model_card())
        else:
            write(str(folder))

    def init_hf_repo(self, token: str | None = None, *args: Any, **kwargs: Any) -> None:
        with explained(repo_name(self)):
            super().init_hf_repo(token, *args, **kwargs)
            if self.is_world_process_zero():
                branch_of(self, token).create()

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
        """Push as `Trainer` does; for a pruned model also pictures and, if `packed`, `sparse/`.

        Raises:
            PushError: the Hub cannot be reached, refuses, or fails; nothing is lost.
        """
        self._finish_current_push()  # its files are about to be written again
        push = FinalPush(commit_message or "Upload model", token, revision, packed)
        with explained(repo_name(self)):
            self.publisher.create_place(push, private)
            options = {**kwargs, "push": push}  # for create_model_card, which it calls
            result = super().push_to_hub(commit_message, blocking, token, revision, **options)
        if not blocking:
            self.publisher.watch(result)
        return result

    def create_model_card(
        self,
        *args: Any,
        metrics: dict[str, float] | None = None,
        dense_run: str | Path | None = None,
        dataset_metadata: dict[str, str] | None = None,
        push: FinalPush | None = None,
        **kwargs: Any,
    ) -> None:
        """Write README.md into output_dir; one that a person wrote stays. `args` as in `Trainer`.

        Args:
            metrics: of the model now; None takes those of its last evaluation.
            dense_run: the output_dir of a dense run to compare with, in this card and later ones.
            dataset_metadata: "config" and "split" of the data of the evaluation.
        """
        if self.pruning_run is None:
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            self.publisher.take_options(args, kwargs, dataset_metadata)
            self.publisher.write_card(self.pruning_run, metrics, dense_run, push)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.publisher.prepare_checkpoint_push(self.pruning_run, Path(checkpoint_folder)):
            super()._push_from_checkpoint(checkpoint_folder)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        self.publisher.warn_of_failures()
