"""Describes a Trainer's run for its record and its card: settings, versions, command line."""

import importlib.metadata
import os
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import Trainer
from transformers.modelcard import extract_hyperparameters_from_trainer

from hf_cyclprune.engines.shard import unwrapped
from hf_cyclprune.reporting.run import RunRecord
from hf_cyclprune.secrets import redact


def describe(trainer: Trainer, has_own_optimizer: bool, **others: Any) -> RunRecord:
    """Return the record of a Trainer's run as it is now; `others` are further fields of it.

    `has_own_optimizer` says whether the Trainer was given an optimizer, or the class of one.
    """
    state: Any = trainer.state
    return RunRecord(
        step=state.global_step,
        total_steps=state.max_steps,
        log_history=list(state.log_history),
        hyperparameters=_hyperparameters(trainer, has_own_optimizer),
        versions=_versions(),
        command=_command(getattr(trainer.args, "hub_token", None)),
        **others,
    )


def bare_model(trainer: Trainer) -> nn.Module:
    """Return the model without what an engine or torch.compile has put around it."""
    unwrap = trainer.accelerator.unwrap_model
    return cast(nn.Module, unwrap(trainer.model, keep_torch_compile=False))


def trained_module(model: object, st_model: object = None) -> nn.Module:
    """Return what a Trainer trains, from what it hands to its callbacks.

    That is `model`. If it is no nn.Module, as in SetFit, which trains the body of its model, then
    it is `st_model`, or else `model.model_body`.

    Raises:
        ValueError: none of them is an nn.Module.
    """
    for found in (model, st_model, getattr(model, "model_body", None)):
        if isinstance(found, nn.Module):
            return found
    raise ValueError(
        "The Trainer must give its callbacks a torch.nn.Module as model, or as st_model; got "
        f"{type(model).__name__}. Use a Trainer that does."
    )


def find_model_id(model: Any) -> str | None:
    """Return the id on the Hub that a model was loaded from; None if it came from elsewhere."""
    name = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
    is_local = not name or Path(name).exists() or name.startswith((".", "/", "~"))
    return None if is_local else name


def _hyperparameters(trainer: Trainer, has_own_optimizer: bool) -> dict[str, Any]:
    """Return what the card of `Trainer` has, and the optimizer in full, as values for JSON."""
    args: Any = trainer.args
    values: dict[str, Any] = extract_hyperparameters_from_trainer(trainer)  # type: ignore[no-untyped-call]
    values["lr_scheduler_type"] = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    values["optimizer"] = _optimizer(args)
    if has_own_optimizer and trainer.optimizer is not None:
        del values["learning_rate"]
        values["optimizer"] = _optimizer_of(trainer.optimizer)
    if trainer.lr_scheduler is not None and not trainer._created_lr_scheduler:
        values = {name: value for name, value in values.items() if "lr_scheduler" not in name}
        scheduler = getattr(trainer.lr_scheduler, "scheduler", trainer.lr_scheduler)
        values["lr_scheduler"] = type(scheduler).__name__  # not accelerate's, which is around it
    if args.bf16 or args.fp16:
        values["mixed_precision_training"] = "bf16" if args.bf16 else "fp16"
    distillation = getattr(trainer, "distillation", None)  # of a PruningTrainer
    if distillation is not None:
        values |= distillation.hyperparameters()
    return {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in values.items()
    }


def _optimizer(args: Any) -> str:
    name = getattr(args.optim, "value", args.optim)
    values = {"weight_decay": args.weight_decay}
    if "adam" in name:
        betas = (args.adam_beta1, args.adam_beta2)
        values = {"betas": betas, "epsilon": args.adam_epsilon, **values}
    return f"{name}, " + ", ".join(f"{key} {value}" for key, value in values.items())


def _optimizer_of(optimizer: Any) -> str:
    inner: Any = unwrapped(optimizer)
    plain = {k: v for k, v in inner.defaults.items() if isinstance(v, int | float | tuple)}
    values = [f"{name} {value}" for name, value in plain.items() if not isinstance(value, bool)]
    return ", ".join([type(inner).__name__, *values])


def _versions() -> dict[str, str]:
    versions: dict[str, str] = {}
    for name in ("hf_cyclprune", "transformers", "torch", "accelerate", "datasets", "tokenizers"):
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _command(token: str | None) -> str | None:
    """Return the command line of hf-cyclprune without tokens, or a script's name; None without.

    The arguments of a script are left out: they may be secret, and a card is public.
    """
    program = Path(sys.argv[0] if sys.argv else "")
    home = os.path.join(os.path.expanduser("~"), "")  # it holds the user's name
    shown = [argument.replace(home, "~/") for argument in redact(sys.argv[1:], token)]
    if program.name == "hf-cyclprune":
        return shlex.join(["hf-cyclprune", *shown])
    if program.parts[-2:] == ("hf_cyclprune", "cli.py"):
        return shlex.join(["python", "-m", "hf_cyclprune.cli", *shown])
    is_script = program.suffix == ".py" and "site-packages" not in program.parts
    return f"python {program.name}{' ...' if shown else ''}" if is_script else None
