"""What a Trainer's run was, for its record and its card."""

import importlib.metadata
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.modelcard import extract_hyperparameters_from_trainer

from hf_cyclprune.hub.secret import redact
from hf_cyclprune.reporting.record import RunRecord

_PACKAGES = ("hf_cyclprune", "transformers", "torch", "accelerate", "datasets", "tokenizers")


def describe(
    trainer: Trainer, weights_step: int, metrics: dict[str, float], card: dict[str, Any]
) -> RunRecord:
    """The record of a run as it is now.

    Args:
        trainer: in the middle of a run, or after it.
        weights_step: the optimizer step after which the model's weights stood.
        metrics: of these weights; {} if they were not evaluated.
        card: what the caller of create_model_card said.
    """
    state: Any = trainer.state
    return RunRecord(
        step=state.global_step,
        weights_step=weights_step,
        total_steps=state.max_steps,
        metrics=metrics,
        log_history=list(state.log_history),
        base_model=find_base_model(trainer.model),
        card=card,
        hyperparameters=_hyperparameters(trainer),
        versions=_versions(),
        command=_command(getattr(trainer.args, "hub_token", None)),
    )


def find_base_model(model: Any) -> str | None:
    """The id on the Hub that the model was loaded from; None if it came from elsewhere."""
    name = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
    is_local = not name or Path(name).exists() or name.startswith((".", "/", "~"))
    return None if is_local else name


def _hyperparameters(trainer: Trainer) -> dict[str, Any]:
    """As in the card of `Trainer`, in values that JSON has."""
    args: Any = trainer.args
    extract: Any = extract_hyperparameters_from_trainer
    values: dict[str, Any] = extract(trainer)
    values["optimizer"] = _optimizer(args)
    values["lr_scheduler_type"] = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    if args.bf16 or args.fp16:
        values["mixed_precision_training"] = "bf16" if args.bf16 else "fp16"
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


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _command(token: str | None) -> str | None:
    """The command line without tokens; None in a notebook, in pytest or at a prompt."""
    program = Path(sys.argv[0] if sys.argv else "")
    home = os.path.join(os.path.expanduser("~"), "")  # names who it is; a card is public
    shown = [argument.replace(home, "~/") for argument in redact(sys.argv[1:], token)]
    arguments = shlex.join(shown)
    if program.name == "hf-cyclprune":
        return f"hf-cyclprune {arguments}"
    is_own = program.parts[-2:] == ("hf_cyclprune", "cli.py")
    if is_own:
        return f"python -m hf_cyclprune.cli {arguments}"
    is_script = program.suffix == ".py" and "site-packages" not in program.parts
    return f"python {os.path.basename(program)} {arguments}".strip() if is_script else None
