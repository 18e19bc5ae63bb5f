"""When to prune: the events of a Trainer, handed on to the run."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers import TrainerControl as Control
from transformers import TrainerState as State
from transformers import TrainingArguments as Args

from hf_cyclprune.checks import check_instance
from hf_cyclprune.config import PruningConfig
from hf_cyclprune.pruning.pruner import Pruner
from hf_cyclprune.reporting.report import SparsityReport
from hf_cyclprune.training.arguments import READERS, PruningArguments
from hf_cyclprune.training.cycle_log import show_line
from hf_cyclprune.training.damage import checkpoint_folder
from hf_cyclprune.training.describe import trained_module
from hf_cyclprune.training.health import check_weights, warn_if_off_target, warn_of_unfrozen
from hf_cyclprune.training.prerequisites import warn_of_inflated_loss, warn_of_scheduler
from hf_cyclprune.training.run import PruningRun


class PruningCallback(TrainerCallback):
    """Prunes the model of any Trainer: masks on the schedule's pruning steps, zeros in every step.

    Used alone it cannot restart the learning rate, choose a best model that is at the target
    sparsity, or `fix_loss_scaling`; `PruningTrainer` adds these. It writes what a resumed run needs
    into the checkpoints in `output_dir`, after the Trainer, but in no search and with no
    `enable_jit_checkpoint`. From others it rebuilds the masks by the zeros, if these tell all that
    the method needs, and are as many as the schedule demands. SetFit's Trainer trains the body of
    its model: that is pruned.

    When a cycle has ended, and after its evaluation, the console shows one line on it; not with
    `logging_strategy="no"`, nor where transformers shows errors only (`log_level="error"`).

    Several callbacks may prune different weights; the report and the card of a `PruningTrainer` are
    about those of the first.

    Args:
        config: what to prune; None reads it from the Trainer's `PruningArguments`.

    Raises:
        ValueError: no config or two, `load_best_model_at_end`; at the start of training, a model
            that has no blocks or holds NaN, a `num_cycles` beyond the steps, two callbacks for one
            weight.
    """

    def __init__(self, config: PruningConfig | None = None) -> None:
        if config is None:
            READERS.add(self)
        else:
            check_instance("config", config, PruningConfig, "sparsity=0.9")
        self.config = config
        self.run: PruningRun | None = None
        """The run that prunes, from the start of training on; None if nothing is pruned."""
        self.is_in_pruning_trainer = False
        self.resume_folder: Path | None = None
        """The checkpoint that a `PruningTrainer` resumes from."""
        self._is_cycle_open = False
        """Whether a cycle has ended and no step has begun since: it may still be evaluated."""

    def join_pruning_trainer(self, resume_from_checkpoint: str | bool | None = None) -> None:
        """Leave what a callback cannot do to a `PruningTrainer`, which resumes from this folder."""
        self.is_in_pruning_trainer = True
        self.resume_folder = None
        if not isinstance(resume_from_checkpoint, bool | None):
            self.resume_folder = Path(resume_from_checkpoint)

    @property
    def pruner(self) -> Pruner | None:
        """Masks and schedule in force, from the start of training on."""
        return self.run.pruner if self.run is not None else None

    def report(self, model: object) -> SparsityReport | None:
        """Count the zeros in the model now, and add the cycles so far; None without pruning."""
        return self.run.report(trained_module(model)) if self.run is not None else None

    def active_config(self, args: Args) -> PruningConfig | None:
        """Return the validated config in force; None if nothing is pruned.

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

    def on_init_end(self, args: Args, state: State, control: Control, **kwargs: object) -> None:
        self._check_args(args)

    def _check_args(self, args: Args) -> PruningConfig | None:
        READERS.discard(self)
        config = self.active_config(args)
        if config is None and not isinstance(args, PruningArguments):
            raise ValueError(
                "PruningCallback needs a config, but has none, and the Trainer has plain "
                "TrainingArguments. Pass PruningCallback(PruningConfig(sparsity=0.9)), or use "
                "PruningArguments."
            )
        if config is not None and args.load_best_model_at_end and not self.is_in_pruning_trainer:
            raise ValueError(
                "load_best_model_at_end must be False with PruningCallback in another Trainer; got "
                "True, which could load a model below the target sparsity. Use PruningTrainer."
            )
        return config

    def on_train_begin(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        if self.run is not None:
            self.run.end()
        self.run, self._is_cycle_open = None, False
        config = self._check_args(args)
        if config is None:
            return
        model = trained_module(kwargs["model"], kwargs.get("st_model"))
        warn_of_scheduler(config, kwargs.get("lr_scheduler"))
        if not self.is_in_pruning_trainer:
            warn_of_inflated_loss(config, args, model)
        optimizer = kwargs.get("optimizer")
        is_guess = not self.is_in_pruning_trainer
        folder = checkpoint_folder(args.output_dir, state) if is_guess else self.resume_folder
        self.run = PruningRun.start(
            config, model, args, state, folder, optimizer, is_guess=is_guess
        )
        self.run.measure_reach(optimizer, kwargs.get("lr_scheduler"))

    def on_pre_optimizer_step(
        self, args: Args, state: State, control: Control, **kwargs: object
    ) -> None:
        if self.run is not None:
            self.run.pruner.before_update(state.global_step + 1)

    def on_optimizer_step(
        self, args: Args, state: State, control: Control, **kwargs: object
    ) -> None:
        t = state.global_step + 1  # not counted yet
        if self.run is not None and self.run.step(t):
            self._is_cycle_open = True
            check_weights(self.run, state, t)

    def on_step_end(self, args: Args, state: State, control: Control, **kwargs: object) -> Control:
        if self.run is not None and self.run.pruner.schedule.is_cycle_end(state.global_step):
            config = self.run.config
            control.should_evaluate |= config.eval_cycle_ends
            if self.is_in_pruning_trainer and self.run.has_cycles:  # it logs the cycle's values
                control.should_log |= args.logging_strategy != "no"
            # What counts for the best model must be on disk to be loaded.
            is_candidate = config.eval_cycle_ends and args.load_best_model_at_end
            control.should_save |= config.save_cycle_ends or is_candidate
        return control

    def on_evaluate(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        if self.run is None:
            return
        check_weights(self.run, state, state.global_step)
        if self._is_cycle_open:
            self.run.history.observe_evaluation(state.global_step, kwargs.get("metrics") or {})

    def on_step_begin(self, args: Args, state: State, control: Control, **kwargs: object) -> None:
        self._close_cycle(args, state)
        if self.run is not None:
            self.run.begin_step(state.global_step + 1)

    def _close_cycle(self, args: Args, state: State) -> None:
        """Show the line of the cycle that is open, if there is one.

        Its evaluation may follow the cycle's last step or, with `eval_strategy="epoch"`, the epoch.
        """
        if self._is_cycle_open and self.run is not None and self.run.has_cycles:
            cycle = self.run.history.cycles[-1]
            show_line(cycle.describe(self.run.pruner.schedule.num_cycles), args, state)
        self._is_cycle_open = False

    def on_log(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        if "train_loss" in (kwargs.get("logs") or {}):  # the summary of the run: the line is first
            self._close_cycle(args, state)

    def on_save(self, args: Args, state: State, control: Control, **kwargs: object) -> None:
        if self.run is None or self.is_in_pruning_trainer:  # which checks and saves all itself
            return
        self.run.warn_if_unmasked()
        if not state.is_hyper_param_search:  # whose trials have folders of their own
            folder = checkpoint_folder(args.output_dir, state)
            is_writer = args.should_save and folder.is_dir()
            self.run.save(folder, state.global_step, is_writer=is_writer)

    def on_train_end(self, args: Args, state: State, control: Control, **kwargs: Any) -> None:
        if self.run is None:
            return
        self._close_cycle(args, state)
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self.run.take_masks_of(Path(state.best_model_checkpoint))
        else:
            self.run.apply_average()
        check_weights(self.run, state, state.global_step)
        warn_of_unfrozen(self.run, trained_module(kwargs["model"], kwargs.get("st_model")))
        warn_if_off_target(self.run, state)
        if not self.is_in_pruning_trainer:
            self.run.warn_if_unmasked()
        self.run.end()


def find_callback(callbacks: Iterable[Any]) -> PruningCallback | None:
    """Return the first callback that prunes; None without one."""
    return next((c for c in callbacks if isinstance(c, PruningCallback)), None)


def with_callback(
    config: PruningConfig | None,
    /,
    callbacks: Iterable[Any] | None = None,
    args: Args | None = None,
    **_: Any,
) -> list[Any]:
    """Return the callbacks of a `PruningTrainer`, with a new one that prunes in front if needed.

    Of the arguments of `Trainer` two matter; the others are ignored.

    Raises:
        ValueError: there is a config, and a callback that prunes too; or it is something else.
    """
    if config is not None:
        check_instance("pruning_config", config, PruningConfig, "sparsity=0.9")
    given = [c() if c is PruningCallback else c for c in callbacks or []]
    own = find_callback(given)
    if own is not None and config is not None:
        raise ValueError(
            "pruning_config must be given once; got one in PruningCallback and another. "
            "Drop one of the two."
        )
    if own is None and (config is not None or isinstance(args, PruningArguments)):
        own = PruningCallback(config)
        given = [own, *given]
    if own is not None:
        own.join_pruning_trainer()
    return given
