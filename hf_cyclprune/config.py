"""Every choice of a user in one flat dataclass; also the command-line flags and the JSON file."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_cyclprune.checks import (
    check_count,
    check_expressions,
    check_flag,
    check_integer,
    check_known,
)
from hf_cyclprune.files import read_json, write_json
from hf_cyclprune.methods import METHODS, Plan
from hf_cyclprune.pruning.criteria import CRITERIA, Criterion, FirstCycle
from hf_cyclprune.pruning.patterns import Pattern, find_target, parse_pattern
from hf_cyclprune.pruning.pruner import Pruner
from hf_cyclprune.pruning.ramps import RAMPS
from hf_cyclprune.pruning.schedules import LEVELS, RECOMPUTE, Schedule
from hf_cyclprune.pruning.targets import find_sparsity

CONFIG_NAME = "pruning_config.json"


def _option(meaning: str, default: object = None) -> Any:
    """A field with the help text of its flag."""
    return field(default=default, metadata={"help": meaning})


@dataclass
class PruningConfig:
    """What to prune, how far, and in which cycles; validated on construction.

    The method decides every field that is None: see `hf-cyclprune methods`, and `plan`.

    Raises:
        ValueError: names the argument, its rule, the value and the remedy.

    >>> PruningConfig(sparsity=0.9, num_cycles=3).build_schedule(total_steps=3000).edges
    (0, 1000, 2000, 3000)
    >>> PruningConfig(method="gradual", pattern="2:4").target_sparsity
    0.5
    """

    method: str = _option(
        f"A named set of the options below: {', '.join(METHODS)}. Options that you give go before "
        "the method's.",
        "cyclical",
    )
    sparsity: float | None = _option(
        "Fraction of the target weights that is zero at the end, in [0, 1). An n:m pattern implies "
        "it.",
    )
    pattern: str = _option(
        "Where zeros may fall: 'unstructured' (anywhere), or 'n:m', which keeps n of every m input "
        "features, such as '2:4'.",
        "unstructured",
    )
    scope: str | None = _option(
        "Unstructured only: which weights are ranked together. 'layer' (default) prunes every "
        "matrix alike, 'global' ranks all of them together, 'erk' prunes large matrices more.",
    )
    criterion: str | None = _option(
        f"How weights are scored; the lowest are pruned: {', '.join(CRITERIA)}."
    )
    num_cycles: int | None = _option(
        "Number of climbs to the target sparsity. More cycles need a longer training."
    )
    reset_ratio: float | None = _option(
        "Sparsity at the start of a later cycle, as a fraction of the sparsity before it. Raise it "
        "where a cycle is too short to climb from low.",
    )
    ramp: str | None = _option(f"Shape of a climb: {', '.join(RAMPS)}.")
    ramp_ratio: float | None = _option(
        "Share of a cycle in which it climbs; the rest is fine-tuning at a fixed mask."
    )
    levels: str | None = _option(
        f"What the cycles climb to: {', '.join(LEVELS)}. 'constant': the target; 'rising': one "
        "climb over the whole run, below which the cycles dip; 'stairs': equal steps; 'last': only "
        "the last cycle leaves the initial sparsity.",
    )
    rise_ratio: float | None = _option(
        "Rising levels only: share of the run in which the level climbs to the target."
    )
    recompute: str | None = _option(
        f"When masks are recomputed: {', '.join(RECOMPUTE)}. 'climb': while sparsity climbs; "
        "'edges': only where it jumps; 'always': in fine-tuning too; 'first_cycle': as 'climb', "
        "then frozen; 'never': the model's zeros stay.",
    )
    interval_steps: int | None = _option(
        "Optimizer steps between two pruning steps of a climb. By default it is chosen from the "
        "climb's length, between 1 and 100.",
    )
    initial_sparsity: float | None = _option(
        "Sparsity with which the first cycle begins. Raise it to prune much at once."
    )
    initial_criterion: str | None = _option("Criterion of the first cycle, if it is another one.")
    lr_restarts: bool | None = _option("Run the whole learning-rate schedule once in every cycle.")
    targets: list[str] | None = _option(
        "Regular expressions of the weights to prune, instead of all Linear layers in the "
        "transformer's blocks.",
    )
    ignore: list[str] | None = _option("Regular expressions of weights that stay dense.")
    pruning_seed: int = _option("Seed of criteria that draw random numbers.", 0)
    eval_cycle_ends: bool = _option("Evaluate at the end of every cycle.", False)
    save_cycle_ends: bool = _option("Save a checkpoint at the end of every cycle.", False)
    fix_loss_scaling: bool = _option(
        "Undo that transformers 5 multiplies the loss of BERT-style heads by the number of "
        "accumulation steps and of processes.",
        True,
    )

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Check every field; called again when training starts."""
        check_known("method", self.method, METHODS)
        check_expressions("targets", self.targets)
        check_expressions("ignore", self.ignore)
        for name in ("eval_cycle_ends", "save_cycle_ends", "fix_loss_scaling"):
            check_flag(name, getattr(self, name))
        check_integer("pruning_seed", self.pruning_seed)
        plan = self.plan
        if plan.recompute == "never":
            self._check_nothing_moves_zeros()
            return
        check_count("num_cycles", plan.num_cycles)
        self.build_schedule(total_steps=plan.num_cycles)  # checks the target and its own fields
        check_known("criterion", plan.criterion, CRITERIA)
        if plan.initial_criterion is not None:
            check_known("initial_criterion", plan.initial_criterion, CRITERIA)
        check_flag("lr_restarts", plan.lr_restarts)

    def _check_nothing_moves_zeros(self) -> None:
        """With zeros that stay where they are, only the choice of weights has a meaning."""
        fixed = ("method", "targets", "ignore", "recompute", "fix_loss_scaling")
        reason = "recompute='never'" if self.recompute else f"method '{self.method}'"
        for f in dataclasses.fields(PruningConfig):
            value = getattr(self, f.name)
            if f.name not in fixed and value != f.default:
                raise ValueError(
                    f"{f.name} must be left out with {reason}, which keeps the zeros where they "
                    f"are; got {value!r}. Leave it out, or choose another one."
                )

    @property
    def plan(self) -> Plan:
        """Every choice, made: the user's where a field is not None, or else the method's."""
        chosen = {f.name: getattr(self, f.name) for f in dataclasses.fields(Plan)}
        given = {name: value for name, value in chosen.items() if value is not None}
        settings: dict[str, Any] = {**METHODS[self.method].settings, **given}
        return Plan(**settings)

    @property
    def target_sparsity(self) -> float | None:
        """s_t, in [0, 1); exactly (m - n) / m for n:m; None where the model's own zeros stay."""
        if self.plan.recompute == "never":
            return None
        return find_target(self.sparsity, self.build_pattern())

    @property
    def restarts_lr(self) -> bool:
        """Whether the learning rate runs its schedule more than once."""
        return self.plan.lr_restarts and self.plan.num_cycles > 1

    def build_schedule(self, total_steps: int, zeros: float = 0.0) -> Schedule:
        """Return the schedule of a run.

        Args:
            total_steps: optimizer steps of the run.
            zeros: the sparsity of the model, for a config without a target of its own.

        Raises:
            ValueError: more cycles than steps.
        """
        target, plan = self.target_sparsity, self.plan
        own = {f.name for f in dataclasses.fields(Schedule)} - {"sparsity", "total_steps"}
        options: dict[str, Any] = {name: getattr(plan, name) for name in own}
        return Schedule(zeros if target is None else target, total_steps, **options)

    def build_pruner(self, targets: Mapping[str, Tensor], total_steps: int) -> Pruner:
        """Return what prunes these weights in a run of `total_steps` optimizer steps.

        Raises:
            ValueError: more cycles than steps; n:m that does not fit a weight; no zeros to keep.
        """
        zeros = find_sparsity(targets) if self.target_sparsity is None else 0.0
        schedule = self.build_schedule(total_steps, zeros)
        return Pruner(targets, schedule, self.build_criterion(), self.build_pattern())

    def build_pattern(self) -> Pattern:
        """Return where zeros may fall."""
        return parse_pattern(self.pattern, self.scope)

    def build_criterion(self) -> Criterion:
        """Return what scores the weights."""
        plan = self.plan
        criterion = CRITERIA[plan.criterion](seed=self.pruning_seed)
        if plan.initial_criterion is None:
            return criterion
        return FirstCycle(CRITERIA[plan.initial_criterion](seed=self.pruning_seed), criterion)


def field_names() -> list[str]:
    """Return the names of all pruning options, in the order of the class."""
    return [f.name for f in dataclasses.fields(PruningConfig)]


def config_to_dict(config: PruningConfig) -> dict[str, Any]:
    """Return the pruning options alone, also of a config with others (`PruningArguments`)."""
    return {name: getattr(config, name) for name in field_names()}


def config_from_dict(values: Mapping[str, Any]) -> PruningConfig:
    """Return the config with these options.

    Raises:
        ValueError: an unknown option, or a value out of its range.
    """
    for name in values:
        check_known("pruning option", name, field_names())
    return PruningConfig(**values)


def save_config(config: PruningConfig, folder: str | Path) -> Path:
    """Write pruning_config.json into `folder`."""
    return write_json(Path(folder) / CONFIG_NAME, config_to_dict(config))


def load_config(folder: str | Path) -> PruningConfig:
    """Read pruning_config.json from `folder`.

    Raises:
        FileNotFoundError, ValueError: it is not there, or not a valid config.
    """
    return config_from_dict(read_json(Path(folder) / CONFIG_NAME, "Write it with save_config."))
