"""A training run that prunes: its start or resume, its steps, its state and its report."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerState, TrainingArguments

from hf_cyclprune.config import PruningConfig, config_to_dict
from hf_cyclprune.engines.shards import reshard
from hf_cyclprune.packing.manifest import forget_packed_
from hf_cyclprune.pruning.masks import pack_mask, parts_of_packed
from hf_cyclprune.pruning.pruner import Pruner
from hf_cyclprune.pruning.snapshot import take_snapshot
from hf_cyclprune.pruning.targets import check_finite, find_targets
from hf_cyclprune.reporting.cycles import CycleHistory
from hf_cyclprune.reporting.report import SparsityReport
from hf_cyclprune.training.averaging import WeightAverage
from hf_cyclprune.training.counts import Counts
from hf_cyclprune.training.cycle_teacher import CycleTeacher
from hf_cyclprune.training.lr import restarts
from hf_cyclprune.training.prerequisites import (
    check_engine,
    check_whole,
    claim_weights,
    warn_of_low_precision,
    warn_of_zeros,
)
from hf_cyclprune.training.reach import find_reach, warn_of_reach
from hf_cyclprune.training.resume import (
    check_rebuildable,
    find_state,
    forget_best_off_target,
    masks_from_zeros,
    restore_masks,
    warn_of_changes,
)
from hf_cyclprune.training.state import PruningState, load_state, place_in, save_state
from hf_cyclprune.training.teacher import LAST_CYCLE, TeacherOptions


@dataclass
class PruningRun:
    """Config, masks and cycles of a run, from the start of training on."""

    config: PruningConfig
    pruner: Pruner
    model: nn.Module
    history: CycleHistory = field(default_factory=CycleHistory)
    average: WeightAverage | None = None
    teacher: CycleTeacher | None = None
    number: int = 0
    """How many runs of the same training, of other weights, have begun before it."""

    def __post_init__(self) -> None:
        self.counts = Counts(self.config, self.pruner.shards)

    @classmethod
    def start(
        cls,
        config: PruningConfig,
        model: nn.Module,
        args: TrainingArguments,
        state: TrainerState,
        checkpoint: Path | None,
        optimizer: Optimizer | None = None,
        *,
        is_guess: bool = False,
    ) -> "PruningRun":
        """Begin a run or, if the Trainer's state has steps behind it, resume one.

        A resumed run has its masks from the checkpoint or, where it has none, from the zeros. One
        that `is_guess` may be another run's.

        Raises:
            ValueError: the model, the training engine or the checkpoint does not fit the config.
        """
        check_engine(model)
        forget_packed_(model)
        reshard(model)
        targets = find_targets(model, config.targets, config.ignore)
        pruner = config.build_pruner(targets, state.max_steps, optimizer)
        run = cls(config, pruner, model, number=claim_weights(state, targets))
        check_finite(pruner.shards)
        warn_of_low_precision(pruner.shards)
        if config.ema_decay is not None:
            run.average = WeightAverage(model, config.ema_decay, pruner.schedule, optimizer)
        if isinstance(args, TeacherOptions) and args.teacher == LAST_CYCLE:
            check_whole(pruner.shards)
            run.teacher = CycleTeacher(model)
        if state.global_step > 0:
            run._resume(state, checkpoint, is_guess)
        elif run.has_cycles:
            warn_of_zeros(pruner.shards)
        run.apply_masks_()
        pruner.observation.watch(model)
        return run

    def measure_reach(self, optimizer: object, lr_scheduler: object) -> None:
        """Find out how far returning weights can travel, and warn if they cannot recover."""
        pruner, history = self.pruner, self.history
        history.restarts_lr = restarts(lr_scheduler)
        if self.has_cycles and history.reach is None:
            history.reach = find_reach(pruner.shards, pruner.schedule, optimizer, lr_scheduler)
            warn_of_reach(pruner, history.reach, self.config.plan.criterion)

    def end(self) -> None:
        """Leave the model pruned and without the hooks of this run, wherever training stopped."""
        self.pruner.release()
        if self.pruner.policy.is_open:  # a step had begun
            with torch.no_grad():  # asks no other rank: it may have failed
                self.pruner.policy.close_(0.0)
                self.pruner.shards.publish_()

    def apply_masks_(self) -> None:
        """Set every pruned weight to zero, between two steps."""
        reshard(self.model)
        self.pruner.apply_masks_()

    @property
    def has_cycles(self) -> bool:
        """Whether the masks change at all; False where the run keeps the zeros it began with."""
        return not self.pruner.schedule.keeps_zeros

    def _resume(self, state: TrainerState, checkpoint: Path | None, is_guess: bool) -> None:
        pruner = self.pruner
        place, saved = find_state(pruner, checkpoint, self.number, is_guess)
        if saved is not None:
            self._restore(saved)
            if warn_of_changes(saved, self.config, pruner.schedule):
                self.history.is_plan_kept = False
                if self.has_cycles:
                    # There may be no pruning step left: prune after the next step.
                    pruner.pending = set(range(len(pruner.groups)))
        elif self.has_cycles:
            check_rebuildable(pruner)
            masks_from_zeros(pruner, state.global_step)
        if self.average is not None:
            self.average.resume(place, state.global_step)
        if self.teacher is not None:
            self.teacher.resume(place, is_due=bool(self.history.cycles))
        forget_best_off_target(pruner, state)

    def _restore(self, saved: PruningState) -> None:
        restore_masks(self.pruner, saved)
        reference = parts_of_packed(saved.reference, self.pruner.shards)
        self.history = CycleHistory.from_dict(saved.history, reference)

    def begin_step(self, t: int) -> None:
        """Prepare the forward pass of optimizer step t, which may follow an evaluation."""
        if self.pruner.shards.ranks.is_divided:
            reshard(self.model)
        self.pruner.begin_step(t)

    def step(self, t: int) -> bool:
        """Prune after optimizer step t = 1, 2, ... and return whether a cycle ended with it."""
        pruner, schedule = self.pruner, self.pruner.schedule
        done = pruner.step(t)
        if done.is_reset:
            self.history.observe_reset(t, pruner.masks, pruner.shards, done.benefit, done.cost)
        if self.average is not None:
            is_recomputed, is_pending = done.num_recomputed > 0, bool(pruner.pending)
            self.average.update(t, is_recomputed=is_recomputed, is_pending=is_pending)
        if not schedule.is_cycle_end(t):
            return False
        if self.teacher is not None:
            self.teacher.take()
        self.history.observe_end(t, schedule.cycle(t), pruner.sparsity, pruner.masks, pruner.shards)
        return True

    def save(self, folder: Path, step: int, *, is_writer: bool) -> None:
        """Write masks, pending resets, cycles and average as after optimizer step `step`.

        All ranks must call it, since each may hold a part; the one that writes has `is_writer`.
        """
        pruner = self.pruner
        state = PruningState(
            step=step,
            total_steps=pruner.schedule.total_steps,
            config=config_to_dict(self.config),
            plan=self.config.choices(pruner.schedule),
            masks={n: pack_mask(pruner.shards[n].gather(m)) for n, m in pruner.masks.items()},
            pending=[pruner.groups[g][0] for g in sorted(pruner.pending)],
            history=self.history.to_dict(),
            reference=self.history.reference_of_wholes(pruner.shards),
            snapshot=take_snapshot(pruner),
        )
        average = self.average.wholes() if self.average is not None else {}
        if not is_writer:
            return
        folder = place_in(folder, self.number)
        save_state(state, folder)
        if self.average is not None:
            self.average.save(folder, average)
        if self.teacher is not None:
            self.teacher.save(folder)

    @property
    def is_averaged(self) -> bool:
        """Whether the weights in the model are the average over the last steps."""
        return self.average is not None and self.average.is_applied

    def apply_average(self) -> None:
        """Put the average over the last steps into the model, if there is one."""
        if self.average is not None:
            reshard(self.model)
            self.average.apply_()
            self.apply_masks_()

    def take_masks_of(self, checkpoint: Path) -> None:
        """Take masks and cycles from the checkpoint whose weights the Trainer has just loaded."""
        saved = load_state(checkpoint)
        if saved is not None:
            self._restore(saved)

    def log_values(self, step: int, *, is_training: bool) -> dict[str, float]:
        """Return the values to log after an optimizer step: sparsity and cycle, counted from 1.

        A training step at the end of a cycle also has the cycle's recovered shares.
        """
        cycle = self.pruner.schedule.cycle(step) + 1
        values: dict[str, float] = {"sparsity": self.pruner.sparsity, "cycle": cycle}
        return values | (self.history.shares_at(step) if is_training else {})

    def report(self, model: nn.Module) -> SparsityReport:
        """Count the zeros in the model as it is now, and add the cycles so far: see `Counts`."""
        return self.counts.of_model(model, self.history.cycles)

    def prepare_saving(
        self, state_dict: Mapping[str, Tensor] | None, *, is_everybody_here: bool
    ) -> None:
        """Look at what is about to be saved: see `Counts`."""
        self.warn_if_unmasked()
        self.counts.look_at_saved(self.model, self.history.cycles, state_dict, is_everybody_here)

    def warn_if_unmasked(self) -> None:
        """Warn if a pruned weight is not zero, since a saved model would hold that value."""
        name = self.pruner.policy.find_unmasked()
        if name is not None:
            warnings.warn(
                f"The model has non-zero values where '{name}' is pruned, and so has what is "
                "saved: something changed the weights after the optimizer's step. Change them "
                "before it, or call apply_masks_() of the Trainer's or the callback's pruner.",
                stacklevel=2,
            )
