"""PruningTrainer: transformers' Trainer with pruning, and only what a callback cannot reach."""

import inspect
import os
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_cyclprune.card.card import Card
from hf_cyclprune.config import PruningConfig
from hf_cyclprune.pruning.pruner import Pruner
from hf_cyclprune.reporting.report import SparsityReport
from hf_cyclprune.training.arguments import PruningArguments
from hf_cyclprune.training.callback import PruningCallback
from hf_cyclprune.training.damage import forget_state, newest_checkpoint
from hf_cyclprune.training.describe import describe
from hf_cyclprune.training.lr import check_restartable, get_restarting_scheduler
from hf_cyclprune.training.publishing import PushingTrainer
from hf_cyclprune.training.stopping import StopGate, held_patience
from hf_cyclprune.training.upstream import is_loss_inflated, save_under_own_names

_PREEMPTION_NAME = "checkpoint-is-incomplete.txt"


class PruningTrainer(PushingTrainer):
    """A drop-in replacement for `Trainer` that prunes in cycles while it trains.

    Takes every argument of `Trainer`. What to prune comes from `pruning_config=`, or from
    `PruningArguments`; with neither it trains as `Trainer` does. While it prunes:

    - the learning rate runs its whole schedule, warm-up included, once in every cycle;
    - every log entry holds the sparsity and the cycle, counted from 1;
    - only evaluations at the target sparsity count for the best model and for early stopping, and
      a stop asked for elsewhere waits for the end of the cycle;
    - checkpoints hold the masks, and resume bit for bit on one CPU process in fp32; `True` skips
      those that are damaged;
    - the loss of BERT-style heads is not multiplied by the number of accumulation steps;
    - weights are saved under the model's own names, also where the pretrained file had older ones;
    - every push carries the sparsity report and a model card of the weights in it.

    Raises:
        ValueError: a config given twice, or a learning-rate schedule that cannot restart.
    """

    def __init__(
        self, *args: Any, pruning_config: PruningConfig | None = None, **kwargs: Any
    ) -> None:
        named = inspect.signature(Trainer.__init__).bind_partial(self, *args).arguments
        del named["self"]
        kwargs = dict(**named, **kwargs)  # a TypeError if an argument is given twice
        given = kwargs.get("callbacks") or []
        callbacks = [c() if c is PruningCallback else c for c in given]
        own = _find_callback(callbacks)
        if own is not None and pruning_config is not None:
            raise ValueError(
                "pruning_config must be given once; got one in PruningCallback and another. "
                "Drop one of the two."
            )
        is_searchable = isinstance(kwargs.get("args"), PruningArguments)
        if own is None and (pruning_config is not None or is_searchable):
            own = PruningCallback(pruning_config)
            callbacks = [own, *callbacks]
        if own is not None:
            own.has_pruning_trainer = True
            kwargs["callbacks"] = callbacks
        self._best_step: int | None = None
        """Of the best model, where it was loaded."""
        self._evaluation: tuple[int, dict[str, float]] = (-1, {})
        """The optimizer step whose weights were evaluated last, and the metrics."""
        super().__init__(**kwargs)
        self._gate = StopGate(lambda: self.pruner, self._put_gate_last)
        self._stock_accepts_loss_kwargs = self.model_accepts_loss_kwargs
        self._prepare_run()

    def _prepare_run(self) -> PruningConfig | None:
        """Check and set what depends on the config in force; return the config.

        Called at construction and again in every run, since a search changes the arguments, and a
        callback may have been added.
        """
        callback = self.pruning_callback
        if callback is None:
            return None
        callback.has_pruning_trainer = True
        self._put_gate_last()
        config = callback.active_config(self.args)
        if config is not None:
            self._check_config(config)
        is_fixed = config is not None and config.fix_loss_scaling
        has_model = self.model is not None  # a search makes it anew for every trial
        if has_model and config is not None:
            save_under_own_names(self._bare_model())
        self.model_accepts_loss_kwargs = self._stock_accepts_loss_kwargs and not (
            is_fixed and has_model and is_loss_inflated(self._bare_model())
        )
        return config

    def _put_gate_last(self) -> None:
        """So that it sees what the other callbacks ask for; a new list, the old may be in use."""
        others = [c for c in self.callback_handler.callbacks if c is not self._gate]
        self.callback_handler.callbacks = [*others, self._gate]

    def _check_config(self, config: PruningConfig) -> None:
        if config.eval_cycle_ends and self.eval_dataset is None:
            raise ValueError(
                "eval_cycle_ends must come with an eval_dataset; got None. Pass one, or drop "
                "eval_cycle_ends."
            )
        if not config.restarts_lr:
            return
        check_restartable(self.args.lr_scheduler_type)
        if self.lr_scheduler is not None and not self._created_lr_scheduler:
            raise ValueError(
                "optimizers must not hold a scheduler while the learning rate restarts; got "
                f"{type(self.lr_scheduler).__name__}. Pass (optimizer, None), or "
                "lr_restarts=False."
            )

    @property
    def pruning_callback(self) -> PruningCallback | None:
        """The callback that prunes; None without one. A resumed Trainer may have replaced it."""
        return _find_callback(self.callback_handler.callbacks)

    @property
    def pruner(self) -> Pruner | None:
        """Masks and schedule in force, from the start of training on."""
        callback = self.pruning_callback
        return callback.pruner if callback is not None else None

    def sparsity_report(self) -> SparsityReport | None:
        """Zeros counted in the model now, and the cycles so far; None if nothing was pruned."""
        callback = self.pruning_callback
        return callback.report(self._bare_model()) if callback is not None else None

    def card_facts(self) -> Card | None:
        """What the card may say of the model now; None if nothing was pruned."""
        callback, report = self.pruning_callback, self.sparsity_report()
        config = callback.active_config(self.args) if callback is not None else None
        if callback is None or config is None or report is None:
            return None
        step, model = self._weights_step(), self._bare_model()
        return Card(
            model_name=self._repo_name.rpartition("/")[2],
            report=report,
            config=config,
            record=describe(
                self,
                step,
                metrics=self._metrics_at(step),
                base_model=self.base_model_id,
                card=self.said,
                dense_metrics=self.dense_metrics,
                is_plan_kept=callback.history.is_plan_kept,
            ),
            repo_id=getattr(self, "hub_model_id", None),
            model_class=type(model).__name__,
            num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        )

    @property
    def has_facts(self) -> bool:
        """Whether something is pruned."""
        return self.pruner is not None

    def _weights_step(self) -> int:
        return self.state.global_step if self._best_step is None else self._best_step

    def _metrics_at(self, step: int) -> dict[str, float]:
        """Of the weights after an optimizer step; {} if they were not evaluated."""
        evaluated, metrics = self._evaluation
        if evaluated == step:
            return metrics
        logged = [entry for entry in self.state.log_history if entry.get("step") == step]
        return {k: v for entry in logged for k, v in entry.items() if k.startswith("eval_")}

    def _bare_model(self) -> nn.Module:
        model: nn.Module = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return model

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As in `Trainer`; `True` takes the newest checkpoint that is whole."""
        if resume_from_checkpoint is True:
            folder = str(self.args.output_dir)
            found = newest_checkpoint(
                folder,
                remove=self.args.should_save,
                needs_optimizer=not self.args.save_only_model,
            )
            resume_from_checkpoint = found or True  # which transformers refuses
        callback = self.pruning_callback
        if callback is not None:
            callback.resume_folder = None
        self._prepare_run()
        self._best_step, self._evaluation = None, (-1, {})
        try:
            result = super().train(resume_from_checkpoint, *args, **kwargs)
        except KeyboardInterrupt:
            if callback is not None:
                callback.warn_if_off_target(self.state)
            raise
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._best_step = self.state.best_global_step
        return result

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        config = self._prepare_run()
        if self.lr_scheduler is not None or config is None or not config.restarts_lr:
            return super().create_scheduler(num_training_steps, optimizer)
        schedule = config.build_schedule(num_training_steps)
        used: Any = self.optimizer if optimizer is None else optimizer
        kwargs: Any = self.args.lr_scheduler_kwargs
        self.lr_scheduler = get_restarting_scheduler(
            self.args.lr_scheduler_type,
            used,
            schedule,
            self.args.get_warmup_steps(schedule.cycle_length(0)),
            kwargs,
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        pruner = self.pruner
        if pruner is None:
            super().log(logs, start_time)
            return
        cycle = pruner.schedule.cycle(self.state.global_step) + 1
        own: dict[str, float] = {"sparsity": pruner.sparsity, "cycle": cycle}
        callback = self.pruning_callback
        if callback is not None and "loss" in logs:  # of a training step, not of an evaluation
            own |= callback.history.shares_at(self.state.global_step)
        # Not into the caller's dict: evaluate() returns it, and a search would optimize their sum.
        shown = {**logs, **own}
        super().log(shown, start_time)
        logs.update({name: value for name, value in shown.items() if name not in own})

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        is_held = self.is_in_train and self._is_off_target()
        with held_patience(self.callback_handler.callbacks) if is_held else nullcontext():
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        self._remember(metrics, is_other_set=bool(args) or kwargs.get("eval_dataset") is not None)
        return metrics

    def _remember(self, metrics: dict[str, float], is_other_set: bool) -> None:
        """The metrics of another set do not take the place of the usual one's."""
        step = self._weights_step()
        before = self._evaluation[1] if self._evaluation[0] == step else {}
        new = {k: v for k, v in metrics.items() if k.startswith("eval_")}
        self._evaluation = (step, {**new, **before} if is_other_set else {**before, **new})

    def _is_off_target(self) -> bool:
        pruner = self.pruner
        return pruner is not None and not pruner.is_at_target

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        return not self._is_off_target() and super()._determine_best_metric(metrics, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        callback = self.pruning_callback
        if callback is not None:
            callback.resume_folder = Path(resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        callback = self.pruning_callback
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        folder = os.path.join(self._get_output_dir(trial=trial), name)
        if self.args.should_save:
            forget_state(folder)
        if callback is not None:
            # transformers saves for a preemption with this file beside the checkpoint.
            self._gate.is_preempted |= os.path.exists(os.path.join(folder, _PREEMPTION_NAME))
            if self.args.should_save:
                callback.save_state(folder)
        super()._save_checkpoint(model, trial)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        self._warn_if_unmasked()
        super()._save(output_dir, state_dict)

    def _warn_if_unmasked(self) -> None:
        """Every file holds the zeros of the masks, also one that is saved inside a cycle."""
        name = self.pruner.find_unmasked() if self.pruner is not None else None
        if name is not None:
            warnings.warn(
                f"The model is saved with non-zero values where '{name}' is pruned: something "
                "changed the weights after the optimizer's step. Change them before it, or call "
                "trainer.pruner.apply_masks_().",
                stacklevel=2,
            )


def _find_callback(callbacks: list[Any]) -> PruningCallback | None:
    return next((c for c in callbacks if isinstance(c, PruningCallback)), None)
