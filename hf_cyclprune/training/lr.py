"""A learning rate that runs its whole schedule once in every pruning cycle."""

import json
import re
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments, get_scheduler
from transformers.trainer_utils import SchedulerType

from hf_cyclprune.checks import check_not_negative
from hf_cyclprune.config import PruningConfig
from hf_cyclprune.engines.shard import unwrapped
from hf_cyclprune.pruning.schedules import Schedule

# Driven by a metric, or restarting by a clock of their own.
_NOT_RESTARTABLE = ("reduce_lr_on_plateau", "greedy", "cosine_with_restarts")


def get_restarting_scheduler(
    name: str | SchedulerType,
    optimizer: Optimizer,
    schedule: Schedule,
    num_warmup_steps: int = 0,
    scheduler_specific_kwargs: dict[str, Any] | None = None,
    restart_decay: float = 1.0,
) -> LambdaLR:
    """Return the learning-rate schedule `name`, run from start to end in every cycle.

    Step t = e_c + 1 + u is taken with the rate that a run of the cycle's length would have at its
    step u, warm-up included. Call `.step()` once after every optimizer step, as usual.

    Args:
        name: any that `transformers.get_scheduler` knows, except those that follow a metric or
            restart by themselves.
        schedule: the pruning schedule, whose edges are the restarts.
        num_warmup_steps: optimizer steps of warm-up in each cycle; at most its climb.
        scheduler_specific_kwargs: as for `transformers.get_scheduler`.
        restart_decay: in [0, 1]; every cycle has this factor of the rates of the one before.

    Raises:
        ValueError: a schedule that cannot restart, or a warm-up longer than the climb.
    """
    check_restartable(name)
    check_warmup(num_warmup_steps, schedule)
    lr = getattr(unwrapped(optimizer), "defaults", {}).get("lr", optimizer.param_groups[0]["lr"])
    factors: dict[int, Callable[[int], float]] = {}
    for length in {schedule.cycle_length(c) for c in range(schedule.num_cycles)}:
        kwargs = scheduler_specific_kwargs
        curve = get_scheduler(name, _stand_in(lr), num_warmup_steps, length, kwargs)
        factors[length] = curve.lr_lambdas[0]

    def factor(finished_steps: int) -> float:
        cycle = schedule.cycle(finished_steps + 1)
        u = finished_steps - schedule.edges[cycle]
        return factors[schedule.cycle_length(cycle)](u) * restart_decay**cycle

    factor.num_restarts = schedule.num_cycles - 1  # type: ignore[attr-defined]
    return LambdaLR(optimizer, factor)


def restarts(lr_scheduler: Any) -> bool:
    """Whether this scheduler came from `get_restarting_scheduler`."""
    own = getattr(lr_scheduler, "scheduler", lr_scheduler)  # accelerate wraps it
    lambdas = getattr(own, "lr_lambdas", [])
    return any(hasattr(function, "num_restarts") for function in lambdas)


def check_restartable(name: str | SchedulerType) -> None:
    """Raise a ValueError for a schedule that cannot be run once in every cycle."""
    value = SchedulerType(name).value
    if value in _NOT_RESTARTABLE:
        raise ValueError(
            f"lr_scheduler_type must be a function of the step that can start again; got '{value}'."
            " Choose for example 'linear' or 'cosine', or pass lr_restarts=False."
        )


def check_scheduler(args: TrainingArguments) -> None:
    """Raise a ValueError unless the learning rate and the arguments of its schedule are valid."""
    check_not_negative("learning_rate", args.learning_rate)
    kwargs: Any = args.lr_scheduler_kwargs
    try:
        get_scheduler(args.lr_scheduler_type, _stand_in(args.learning_rate), 0, 1000, kwargs)
    except (TypeError, ValueError) as error:
        value = SchedulerType(args.lr_scheduler_type).value
        missing = re.findall(r"'(\w+)'", str(error)) if "missing" in str(error) else []
        example = json.dumps(dict.fromkeys(missing, 100))
        remedy = f"Pass for example lr_scheduler_kwargs='{example}'" if missing else "Change them"
        raise ValueError(
            f"lr_scheduler_kwargs must fit lr_scheduler_type '{value}'; got "
            f"{kwargs!r}: {error}. {remedy}, or choose another schedule, such as 'linear'."
        ) from error


def _stand_in(lr: float) -> Optimizer:
    """Return an optimizer of nothing, for a schedule that is only looked at."""
    return torch.optim.SGD([torch.zeros(1)], lr=lr)


def make_scheduler(
    args: TrainingArguments, optimizer: Optimizer, config: PruningConfig, total_steps: int
) -> LambdaLR:
    """Return the learning-rate schedule of a Trainer that restarts with every pruning cycle."""
    schedule = config.build_schedule(total_steps)
    warmup_steps = args.get_warmup_steps(schedule.cycle_length(0))
    kwargs: Any = args.lr_scheduler_kwargs
    name, decay = args.lr_scheduler_type, config.plan.restart_decay
    return get_restarting_scheduler(name, optimizer, schedule, warmup_steps, kwargs, decay)


def check_warmup(num_warmup_steps: int, schedule: Schedule) -> None:
    """Raise a ValueError if the warm-up outlasts the climb of a cycle, or a cycle without one."""
    cycles = range(schedule.num_cycles)
    longest = min(schedule.climb_length(c) or schedule.cycle_length(c) - 1 for c in cycles)
    if num_warmup_steps > longest:
        raise ValueError(
            f"warmup_steps must not outlast a cycle's climb of {longest} optimizer steps; got "
            f"{num_warmup_steps}, counted per cycle. Warm up for fewer steps, or pass "
            "lr_restarts=False."
        )
