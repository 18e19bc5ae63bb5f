"""Every choice of a user in one flat dataclass; also the command-line flags and the JSON file."""

import dataclasses
import math
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
    check_sparsity,
)
from hf_cyclprune.files import read_json, write_json
from hf_cyclprune.pruning.criteria import CRITERIA, Criterion
from hf_cyclprune.pruning.patterns import NM, Pattern, parse_pattern
from hf_cyclprune.pruning.pruner import HeldPruner, Pruner
from hf_cyclprune.pruning.schedules import RAMPS, Schedule

CONFIG_NAME = "pruning_config.json"
METHODS = ("prune", "hold")


def _option(default: Any, meaning: str) -> Any:
    """A field with the help text of its flag."""
    return field(default=default, metadata={"help": meaning})


@dataclass
class PruningConfig:
    """What to prune, how far, and in which cycles; validated on construction.

    The defaults are the paper's (https://arxiv.org/abs/2202.01290): magnitude within each layer,
    sparsity resets to half of the target, four fifths of a cycle climb, and the learning rate
    restarts with every cycle.

    Raises:
        ValueError: names the argument, its rule, the value and the remedy.

    >>> PruningConfig(sparsity=0.9, num_cycles=3).build_schedule(total_steps=3000).edges
    (0, 1000, 2000, 3000)
    >>> PruningConfig(pattern="2:4").target_sparsity
    0.5
    """

    method: str = _option(
        "prune", "'prune', or 'hold': train on and keep the zeros that the model already has."
    )
    sparsity: float | None = _option(
        None, "Fraction of the target weights that is zero at the end, in [0, 1). n:m implies it."
    )
    pattern: str = _option(
        "unstructured", "'unstructured', or 'n:m': n kept of every m input features, as in '2:4'."
    )
    scope: str | None = _option(
        None, "Unstructured only: weights ranked together, 'layer' (default), 'global' or 'erk'."
    )
    criterion: str = _option("magnitude", f"Scores of the weights: {', '.join(CRITERIA)}.")
    num_cycles: int = _option(4, "Climbs to the target sparsity; 1 is gradual pruning.")
    reset_ratio: float = _option(
        0.5, "Sparsity at the start of a later cycle, as a fraction of what it climbs to."
    )
    ramp: str = _option("cubic", f"Shape of the climb: {', '.join(RAMPS)}.")
    ramp_ratio: float = _option(
        0.8, "Share of a cycle that climbs; the rest is fine-tuning at the target."
    )
    envelope: str = _option(
        "constant",
        "What the cycles climb to: 'constant' (the target), or 'rising' (a climb over the whole "
        "run, of which ramp_ratio is then the share).",
    )
    dip_ratio: float = _option(0.3, "Rising envelope only: share of a cycle spent below it.")
    interval_steps: int | None = _option(
        None,
        "Optimizer steps between two pruning steps of a climb; chosen from its length if None.",
    )
    lr_restarts: bool = _option(True, "Run the whole learning-rate schedule once in every cycle.")
    targets: list[str] | None = _option(
        None, "Regular expressions of the weights to prune instead of all Linears in the blocks."
    )
    ignore: list[str] | None = _option(None, "Regular expressions of weights not to prune.")
    pruning_seed: int = _option(0, "For criteria that draw numbers; the same on every rank.")
    eval_cycle_ends: bool = _option(False, "Evaluate at the end of every cycle.")
    save_cycle_ends: bool = _option(False, "Save a checkpoint at the end of every cycle.")
    fix_loss_scaling: bool = _option(
        True,
        "Undo that transformers 5 multiplies the loss of BERT-style heads by the number of "
        "accumulation steps and of processes.",
    )

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Check every field; called again when training starts."""
        check_known("method", self.method, METHODS)
        if self.method == "hold":
            self._check_hold()
            return
        _check_agreement(self.sparsity, parse_pattern(self.pattern, self.scope))
        check_count("num_cycles", self.num_cycles)
        self.build_schedule(total_steps=self.num_cycles)  # checks the rest of its fields
        check_known("criterion", self.criterion, CRITERIA)
        check_expressions("targets", self.targets)
        check_expressions("ignore", self.ignore)
        for name in ("lr_restarts", "eval_cycle_ends", "save_cycle_ends", "fix_loss_scaling"):
            check_flag(name, getattr(self, name))
        check_integer("pruning_seed", self.pruning_seed)

    def _check_hold(self) -> None:
        """Nothing else is chosen, but which weights."""
        allowed = ("method", "targets", "ignore", "fix_loss_scaling")
        for f in dataclasses.fields(PruningConfig):
            value = getattr(self, f.name)
            if f.name not in allowed and value != f.default:
                raise ValueError(
                    f"{f.name} must be left out with method 'hold'; got {value!r}. The zeros stay "
                    "where they are."
                )
        check_expressions("targets", self.targets)
        check_expressions("ignore", self.ignore)
        check_flag("fix_loss_scaling", self.fix_loss_scaling)

    @property
    def target_sparsity(self) -> float | None:
        """s_t, in [0, 1); exactly (m - n) / m for n:m; None for 'hold', which has no target."""
        if self.method == "hold":
            return None
        pattern = self.build_pattern()
        if isinstance(pattern, NM):
            return pattern.sparsity
        assert self.sparsity is not None, "validated"
        return self.sparsity

    @property
    def restarts_lr(self) -> bool:
        """Whether the learning rate runs its schedule more than once."""
        return self.lr_restarts and self.num_cycles > 1 and self.method != "hold"

    def build_schedule(self, total_steps: int) -> Schedule:
        """The schedule of a run of `total_steps` optimizer steps.

        Raises:
            ValueError: more cycles than steps.
        """
        target = self.target_sparsity
        if target is None:
            return Schedule(sparsity=0.0, total_steps=total_steps, num_cycles=1)
        return Schedule(
            sparsity=target,
            total_steps=total_steps,
            num_cycles=self.num_cycles,
            reset_ratio=self.reset_ratio,
            ramp=self.ramp,
            ramp_ratio=self.ramp_ratio,
            envelope=self.envelope,
            dip_ratio=self.dip_ratio,
            interval_steps=self.interval_steps,
        )

    def build_pruner(self, targets: Mapping[str, Tensor], total_steps: int) -> Pruner:
        """What prunes these weights in a run of `total_steps` optimizer steps.

        Raises:
            ValueError: more cycles than steps; n:m that does not fit a weight; nothing to hold.
        """
        schedule = self.build_schedule(total_steps)
        cls = HeldPruner if self.method == "hold" else Pruner
        return cls(targets, schedule, self.build_criterion(), self.build_pattern())

    def build_pattern(self) -> Pattern:
        return parse_pattern(self.pattern, self.scope)

    def build_criterion(self) -> Criterion:
        return CRITERIA[self.criterion](seed=self.pruning_seed)


def field_names() -> list[str]:
    """The names of all pruning options, in the order of the class."""
    return [f.name for f in dataclasses.fields(PruningConfig)]


def config_to_dict(config: PruningConfig) -> dict[str, Any]:
    """The pruning options alone, also of a config that holds others (`PruningArguments`)."""
    return {name: getattr(config, name) for name in field_names()}


def config_from_dict(values: dict[str, Any]) -> PruningConfig:
    """The config with these options.

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


def _check_agreement(sparsity: float | None, pattern: Pattern) -> None:
    """Sparsity and pattern say the same, and one of them says something."""
    if sparsity is None:
        if not isinstance(pattern, NM):
            raise ValueError(
                "sparsity must be given for pattern 'unstructured'; got None. "
                "Pass a fraction, for example 0.9, or an n:m pattern such as '2:4'."
            )
        return
    check_sparsity(sparsity)
    if isinstance(pattern, NM) and not math.isclose(sparsity, pattern.sparsity, abs_tol=0.005):
        raise ValueError(
            f"sparsity must be {pattern.sparsity:.4g} with pattern '{pattern}', or be left out; "
            f"got {sparsity!r}. Drop one of the two."
        )
