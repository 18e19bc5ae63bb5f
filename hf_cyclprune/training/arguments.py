"""The pruning options as fields of TrainingArguments: they are flags and can be searched."""

from dataclasses import dataclass
from weakref import WeakSet

from transformers import TrainingArguments

from hf_cyclprune.checks import check_known, use_json_values_
from hf_cyclprune.config import PruningConfig, config_from_dict, config_to_dict
from hf_cyclprune.methods import METHODS
from hf_cyclprune.training.averaging import first_fixed_step
from hf_cyclprune.training.lr import check_restartable, check_scheduler, check_warmup
from hf_cyclprune.training.teacher import LAST_CYCLE, TeacherOptions

READERS: WeakSet[object] = WeakSet()
"""What will ask a Trainer's arguments what to prune, but has not met them yet."""


@dataclass
class PruningArguments(PruningConfig, TeacherOptions, TrainingArguments):
    """`TrainingArguments` with the fields of `PruningConfig` and `TeacherOptions`, also as flags.

    Nothing is pruned with neither `sparsity` nor an n:m `pattern`, unless the method keeps the
    model's zeros, as `method="hold"` does.

    Raises:
        ValueError: as `PruningConfig`; also a pruning option without `sparsity` or n:m; when a
            Trainer without a callback that prunes starts.
    """

    _is_read = False
    """Whether anything has asked for the config since the arguments were made."""

    def __post_init__(self) -> None:
        config = self.pruning_config()
        self.check_teacher()
        if self.teacher == LAST_CYCLE and (config is None or config.plan.num_cycles < 2):
            raise ValueError(
                f"teacher '{LAST_CYCLE}' must come with two cycles or more, which only a pruned "
                "run has. Add for example sparsity=0.9 and num_cycles=4."
            )
        super(TeacherOptions, self).__post_init__()  # type: ignore[no-untyped-call]
        check_scheduler(self)
        if config is not None and config.restarts_lr:
            check_restartable(self.lr_scheduler_type)
        if config is not None and self.max_steps > 0:  # else the schedule is not known yet
            schedule = config.build_schedule(self.max_steps)
            if config.ema_decay is not None:
                first_fixed_step(schedule)
            if config.restarts_lr:
                check_warmup(self.get_warmup_steps(schedule.cycle_length(0)), schedule)
        self._is_read = False

    @property
    def is_pruning(self) -> bool:
        """Whether anything is pruned, or zeros are kept."""
        check_known("method", self.method, METHODS)
        is_chosen = self.sparsity is not None or self.pattern != "unstructured"
        return is_chosen or self.plan.recompute == "never"

    def pruning_config(self) -> PruningConfig | None:
        """The validated pruning options as they are now; None if nothing is pruned."""
        use_json_values_(self)
        self._is_read = True
        options = config_to_dict(self)
        if self.is_pruning:
            return config_from_dict(options)
        changed = [k for k, v in options.items() if v != _DEFAULTS[k] and k not in OF_DENSE_RUNS]
        if changed:
            raise ValueError(
                f"{changed[0]} must come with sparsity or an n:m pattern; got "
                f"{options[changed[0]]!r} without. Add for example sparsity=0.9."
            )
        return None

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """As in `TrainingArguments`. Every Trainer that makes a scheduler asks when it starts.

        Raises:
            ValueError: nothing has asked for the pruning options, and nothing is about to.
        """
        if self.is_pruning and not self._is_read and not READERS:
            raise ValueError(
                "PruningArguments must be given to what prunes; got "
                f"sparsity={self.sparsity!r}, pattern={self.pattern!r}, but nothing in this "
                "Trainer prunes. Use PruningTrainer, or add callbacks=[PruningCallback()]."
            )
        return int(super().get_warmup_steps(num_training_steps))


OF_DENSE_RUNS = ("fix_loss_scaling",)
"""Options that a dense run may have too, to be trained as the pruned run it is compared with."""
_DEFAULTS: dict[str, object] = config_to_dict(PruningConfig(sparsity=0.0)) | {"sparsity": None}
