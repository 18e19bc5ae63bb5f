"""WHEN to prune: the Trainer's events, and nothing of the method."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from hf_cyclprune.config import PruningConfig, config_to_dict
from hf_cyclprune.pruning.pruner import Pruner
from hf_cyclprune.pruning.targets import check_finite, find_targets
from hf_cyclprune.reporting.report import CHECKED_PATTERNS, SparsityReport
from hf_cyclprune.reporting.weights import MOST_ZEROS_BY_CHANCE
from hf_cyclprune.training.arguments import PruningArguments
from hf_cyclprune.training.cycle_log import CycleLines
from hf_cyclprune.training.lr import restarts
from hf_cyclprune.training.state import (
    capture_state,
    is_at_target,
    load_state,
    masks_from_zeros,
    restore_state,
    save_state,
    warn_of_changes,
)

logger = logging.get_logger(__name__)


class PruningCallback(CycleLines):
    """Prunes the model of any Trainer: masks on the schedule's pruning steps, zeros in every step.

    Used alone it cannot restart the learning rate, choose a best model that is at the target
    sparsity, or save masks with a checkpoint; `PruningTrainer` adds these. A checkpoint still
    resumes: the masks are rebuilt from the zeros, if their number is the one that the schedule
    demands.

    When a cycle has ended, and after its evaluation, the console shows one line on it; not with
    `logging_strategy="no"`, nor where transformers shows errors only (`log_level="error"`).

    Args:
        config: what to prune; None reads it from the Trainer's `PruningArguments`.

    Raises:
        ValueError: no config or two, `load_best_model_at_end`; at the start of training, a model
            that has no blocks or holds NaN, more cycles than steps.
    """

    def __init__(self, config: PruningConfig | None = None) -> None:
        super().__init__()
        self.config = config
        self.has_pruning_trainer = False
        """Set by `PruningTrainer`, which does what a callback cannot."""
        self.resume_folder: Path | None = None
        """The checkpoint that `PruningTrainer` resumes from."""
        self.pruner: Pruner | None = None
        """Masks and schedule in force, from the start of training on."""
        self._active: PruningConfig | None = None
        self._last_step = 0

    def active_config(self, args: TrainingArguments) -> PruningConfig | None:
        """The validated config in force; None if nothing is pruned.

        Raises:
            ValueError: it is given both here and in `args`.
        """
        from_args = args.pruning_config() if isinstance(args, PruningArguments) else None
        if self.config is not None and from_args is not None:
            raise ValueError(
                "pruning_config must be given once; got one in PruningArguments and another. "
                "Drop pruning_config=, or use plain TrainingArguments."
            )
        if self.config is not None:
            self.config.validate()
        return self.config or from_args

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._check_args(args)

    def _check_args(self, args: TrainingArguments) -> PruningConfig | None:
        config = self.active_config(args)
        if config is None and not isinstance(args, PruningArguments):
            raise ValueError(
                "PruningCallback must have a config; got none, and plain TrainingArguments. Pass "
                "PruningCallback(PruningConfig(sparsity=0.9)), or use PruningArguments."
            )
        if config is not None and args.load_best_model_at_end and not self.has_pruning_trainer:
            raise ValueError(
                "load_best_model_at_end must be off with PruningCallback in another Trainer; got "
                "True, which would load a model below the target sparsity. Use PruningTrainer."
            )
        return config

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.pruner = None
        self.restart()
        self._active = config = self._check_args(args)
        if config is None:
            return
        targets = find_targets(kwargs["model"], config.targets, config.ignore)
        _check_engine(args, targets)
        check_finite(targets)
        self.pruner = config.build_pruner(targets, state.max_steps)
        self._warn_without_restarts(config, kwargs.get("lr_scheduler"))
        self._last_step = state.global_step
        if state.global_step > 0:
            self._resume(state, config)
        elif config.method != "hold":
            _tell_of_zeros(targets)
        self.pruner.apply_masks_()

    def _warn_without_restarts(self, config: PruningConfig, lr_scheduler: Any) -> None:
        if self.has_pruning_trainer or not config.restarts_lr:
            return
        if not restarts(lr_scheduler):
            warnings.warn(
                "The learning rate does not restart with every pruning cycle in this Trainer. Use "
                "PruningTrainer, pass optimizers= with get_restarting_scheduler, or set "
                "lr_restarts=False.",
                stacklevel=2,
            )

    def _resume(self, state: TrainerState, config: PruningConfig) -> None:
        assert self.pruner is not None
        saved = load_state(self.resume_folder) if self.resume_folder is not None else None
        if saved is None:
            if config.method != "hold":  # which has them already
                masks_from_zeros(self.pruner, state.global_step)
        else:
            self.history = restore_state(self.pruner, saved)
            if warn_of_changes(saved, config_to_dict(config), self.pruner.schedule.total_steps):
                self.history.is_plan_kept = False
                # The new schedule may have no pruning step left: prune after the next step.
                self.pruner.pending = set(range(len(self.pruner.groups)))
        self._forget_best_off_target(state)

    def _forget_best_off_target(self, state: TrainerState) -> None:
        """A best model of other settings, or of another Trainer, may be below this target."""
        if state.best_metric is None:
            return
        assert self.pruner is not None
        folder = state.best_model_checkpoint
        saved = load_state(folder) if folder is not None else None
        if saved is None or not is_at_target(self.pruner, saved):
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.pruner is None:
            return
        t = state.global_step + 1  # not counted yet
        self._last_step = t
        done = self.pruner.step(t)
        if done.is_reset:
            self.history.observe_reset(t, self.pruner.masks)
        schedule = self.pruner.schedule
        if schedule.is_cycle_end(t):
            cycle = schedule.cycle(t)
            self.history.observe_end(t, cycle, self.pruner.sparsity, self.pruner.masks)
            self.open_cycle(None if self._is_held else schedule.num_cycles)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if self._active is not None and self.pruner is not None:
            is_end = self.pruner.schedule.is_cycle_end(state.global_step)
            control.should_evaluate |= is_end and self._active.eval_cycle_ends
            control.should_log |= is_end and self._logs_cycle_ends(args)
            # What counts for the best model must be on disk to be loaded.
            is_candidate = self._active.eval_cycle_ends and args.load_best_model_at_end
            control.should_save |= is_end and (self._active.save_cycle_ends or is_candidate)
        return control

    def _logs_cycle_ends(self, args: TrainingArguments) -> bool:
        """Only `PruningTrainer` can put into a log entry what there is to say."""
        is_wanted = args.logging_strategy != "no"
        return is_wanted and self.has_pruning_trainer and not self._is_held

    @property
    def _is_held(self) -> bool:
        return self._active is not None and self._active.method == "hold"

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.pruner is None:
            return
        self.close_cycle(args, state)
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._take_masks_of(Path(state.best_model_checkpoint))
        self.warn_if_off_target(state)

    def warn_if_off_target(self, state: TrainerState) -> None:
        """Say so if the run has ended where the model is not at its target sparsity."""
        if self.pruner is not None and not self.pruner.is_at_target:
            target = self.pruner.schedule.sparsity
            warnings.warn(
                f"Training ended after optimizer step {state.global_step} of {state.max_steps} at "
                f"sparsity {self.pruner.sparsity:.4f}, not at the target of {target:.4f}. Resume "
                "from a checkpoint to finish the schedule.",
                stacklevel=2,
            )

    def _take_masks_of(self, folder: Path) -> None:
        """The masks that belong to the weights which the Trainer has just loaded from `folder`."""
        saved = load_state(folder)
        if saved is not None and self.pruner is not None:
            self.history = restore_state(self.pruner, saved)

    def save_state(self, folder: str | Path) -> None:
        """Write masks, pending resets and cycles beside a checkpoint."""
        if self.pruner is not None and self._active is not None:
            config = config_to_dict(self._active)
            save_state(capture_state(self.pruner, self.history, self._last_step, config), folder)

    def report(self, model: nn.Module) -> SparsityReport | None:
        """Zeros counted in the model now, and the cycles so far; None if nothing was pruned."""
        config = self._active
        if config is None or self.pruner is None:
            return None
        return SparsityReport.measure(
            {name: model.get_parameter(name) for name in self.pruner.targets},
            patterns=[*CHECKED_PATTERNS, config.pattern],
            cycles=self.history.cycles,
            target_sparsity=config.target_sparsity,
        )


def _tell_of_zeros(targets: Mapping[str, Tensor]) -> None:
    """A run from a sparse model begins dense, as the schedule says; that may surprise."""
    num_zeros = sum(weight.numel() - int(weight.count_nonzero()) for weight in targets.values())
    share = num_zeros / sum(weight.numel() for weight in targets.values())
    if share > MOST_ZEROS_BY_CHANCE:
        logger.warning(
            f"The model already has {share:.2%} zeros in its target weights. They may all return "
            "where the schedule begins dense; method='hold' keeps them."
        )


def _check_engine(args: TrainingArguments, targets: Mapping[str, Tensor]) -> None:
    """Raise a ValueError where a rank does not hold, and update, the whole of every weight."""
    is_sharded = any(
        hasattr(weight, "ds_id")
        or hasattr(weight, "_hp_mapping")
        or hasattr(weight.data, "placements")
        for weight in targets.values()
    )
    if is_sharded or args.deepspeed or args.fsdp:
        raise ValueError(
            "the training engine must keep whole weights on every process; got one that shards "
            "them (FSDP, DeepSpeed or tensor parallelism). Train on one device."
        )
