"""Every choice of a user in one flat dataclass; also the command-line flags and the JSON file."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from hf_cyclprune.checks import (
    check_count,
    check_decay,
    check_expressions,
    check_flag,
    check_fraction,
    check_integer,
    check_known,
    use_json_values_,
)
from hf_cyclprune.engines.shards import Shards
from hf_cyclprune.methods import METHODS, Plan
from hf_cyclprune.options import PruningOptions
from hf_cyclprune.pruning.criteria import FirstCycle
from hf_cyclprune.pruning.criterion import CRITERIA, Criterion
from hf_cyclprune.pruning.layer_sparsities import LayerSparsities, parse_layer_sparsities
from hf_cyclprune.pruning.patterns import Pattern, find_target, parse_pattern
from hf_cyclprune.pruning.pruned_weights import PRUNED_WEIGHTS
from hf_cyclprune.pruning.pruner import Pruner
from hf_cyclprune.pruning.recovery import REGROWTH_AT, Recovery, Regrowth
from hf_cyclprune.pruning.schedules import Schedule
from hf_cyclprune.pruning.targets import find_sparsity

_FRACTIONS = (
    "min_density",
    "pruned_decay",
    "flow_ratio",
    "regrowth_ratio",
    "regrowth_until",
    "protect_ratio",
    "restart_decay",
)


@dataclass
class PruningConfig(PruningOptions):
    """What to prune, how far, and in which cycles; validated on construction.

    The method decides every field that is None: see `hf-cyclprune methods`, and `plan`.

    Raises:
        ValueError: names the argument, its rule, the value and the remedy.

    >>> PruningConfig(sparsity=0.9).build_schedule(total_steps=4000).edges
    (0, 2000, 4000)
    >>> PruningConfig(method="gradual", pattern="2:4").target_sparsity
    0.5
    """

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Check every field; called again when training starts."""
        use_json_values_(self)
        check_known("method", self.method, METHODS)
        check_expressions("targets", self.targets)
        check_expressions("ignore", self.ignore)
        for name in ("reset_momentum", "eval_cycle_ends", "save_cycle_ends", "fix_loss_scaling"):
            check_flag(name, getattr(self, name))
        check_integer("pruning_seed", self.pruning_seed)
        if self.ema_decay is not None:
            check_decay("ema_decay", self.ema_decay)
        plan = self.plan
        for name in _FRACTIONS:
            check_fraction(name, getattr(plan, name))
        if plan.recompute == "never":
            self._check_nothing_moves_zeros()
            return
        check_count("num_cycles", plan.num_cycles)
        self.build_schedule(total_steps=plan.num_cycles)  # checks the target and its own fields
        check_known("criterion", plan.criterion, CRITERIA)
        if plan.initial_criterion is not None:
            check_known("initial_criterion", plan.initial_criterion, CRITERIA)
        check_flag("lr_restarts", plan.lr_restarts)
        check_known("pruned_weights", plan.pruned_weights, PRUNED_WEIGHTS)
        check_known("regrowth", plan.regrowth, ["none", *CRITERIA])
        check_known("regrowth_at", plan.regrowth_at, REGROWTH_AT)
        target = self.target_sparsity or 0.0
        if plan.min_density > 1.0 - target:
            raise ValueError(
                f"min_density must be at most {1.0 - target:.4g}, what a sparsity of {target:g} "
                f"keeps; got {plan.min_density:g}. Pass a smaller one."
            )

    def _check_nothing_moves_zeros(self) -> None:
        """With zeros that stay where they are, only the choice of weights has a meaning."""
        fixed = ("method", "targets", "ignore", "recompute", "ema_decay", "fix_loss_scaling")
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

    def choices(self, schedule: Schedule) -> dict[str, Any]:
        """Return the plan with the numbers of a run's schedule for what it leaves open.

        What has no effect is left out: all but `recompute` where zeros stay, and the scope with n:m
        or `layer_sparsities`.
        """
        if schedule.keeps_zeros:
            return {"recompute": schedule.recompute}
        chosen = dataclasses.asdict(self.plan)
        if self.pattern != "unstructured" or self.layer_sparsities is not None:
            del chosen["scope"]
        chosen |= {"num_cycles": schedule.num_cycles, "interval_steps": schedule.interval}
        return chosen | {"reset_ratio": schedule.reset}

    def build_schedule(self, total_steps: int, zeros: float = 0.0) -> Schedule:
        """Return the schedule of a run; a method's own number of cycles is at most that of steps.

        Args:
            total_steps: optimizer steps of the run.
            zeros: the sparsity of the model, for a config without a target of its own.

        Raises:
            ValueError: `num_cycles` was given, and there are fewer steps.
        """
        target, plan = self.target_sparsity, self.plan
        own = {f.name for f in dataclasses.fields(Schedule)} - {"sparsity", "total_steps"}
        options: dict[str, Any] = {name: getattr(plan, name) for name in own}
        options["num_cycles"] = self.num_cycles or min(plan.num_cycles, max(total_steps, 1))
        return Schedule(zeros if target is None else target, total_steps, **options)

    def build_pruner(
        self,
        targets: Mapping[str, Tensor],
        total_steps: int,
        optimizer: Optimizer | None = None,
        model: nn.Module | None = None,
    ) -> Pruner:
        """Return what prunes these weights in a run of `total_steps` optimizer steps.

        Criteria that average the squared gradient read it from `optimizer`, if it keeps one. Those
        that look at the inputs of layers get hooks on `model`: `pruner.observation.unwatch()`
        removes them.

        Raises:
            ValueError: `num_cycles` exceeds the steps; n:m does not fit a weight; no zeros to keep.
        """
        zeros = 0.0
        if self.target_sparsity is None:
            zeros = find_sparsity(Shards(targets, optimizer))
        schedule = self.build_schedule(total_steps, zeros)
        pruner = Pruner(
            targets,
            schedule,
            self.build_criterion(),
            self.build_pattern(),
            self.build_recovery(),
            optimizer,
        )
        if model is not None:
            pruner.observation.watch(model)
        return pruner

    def build_pattern(self) -> Pattern:
        """Return where zeros may fall."""
        is_free = self.pattern == "unstructured"  # a method's scope means nothing with n:m
        scope = self.plan.scope if is_free else self.scope
        if self.layer_sparsities is not None:
            if not is_free or self.scope is not None:
                raise ValueError(
                    "layer_sparsities must come with pattern 'unstructured' and without scope; got "
                    f"pattern '{self.pattern}' and scope {self.scope!r}. Leave these out."
                )
            pairs = parse_layer_sparsities(self.layer_sparsities)
            return LayerSparsities(pairs, self.sparsity or 0.0)
        return parse_pattern(self.pattern, scope, self.plan.min_density)

    def build_criterion(self) -> Criterion:
        """Return what scores the weights."""
        plan = self.plan
        criterion = CRITERIA[plan.criterion](seed=self.pruning_seed)
        if plan.initial_criterion is None:
            return criterion
        return FirstCycle(CRITERIA[plan.initial_criterion](seed=self.pruning_seed), criterion)

    def build_recovery(self) -> Recovery:
        """Return what a pruned weight is meanwhile, and how it comes back."""
        plan, regrowth = self.plan, None
        if plan.regrowth != "none":
            regrowth = Regrowth(
                CRITERIA[plan.regrowth](seed=self.pruning_seed),
                plan.regrowth_ratio,
                plan.regrowth_until,
                plan.protect_ratio,
            )
        policy = PRUNED_WEIGHTS[plan.pruned_weights]
        rates = (plan.pruned_decay, plan.flow_ratio)
        return Recovery(policy, *rates, regrowth, self.reset_momentum, plan.regrowth_at)


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
