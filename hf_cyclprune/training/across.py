"""Resuming on another training engine than the one that saved, or another number of its ranks.

The Trainer refuses this, or forgets the place in the learning rate's schedule. Here weights, masks,
all that the method remembers, the schedule and the place in the data go on. The state of the
optimizer begins anew, and so does the choice of the best model: this engine cannot load the old.
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import Trainer
from transformers.trainer import SCHEDULER_NAME

from hf_cyclprune.engines.zero import is_zero3
from hf_cyclprune.packing.manifest import dense_files
from hf_cyclprune.training.describe import bare_model
from hf_cyclprune.training.resume import check_all_loaded


def written_by(checkpoint: Path) -> tuple[str | int, ...]:
    """Return what a checkpoint's optimizer state fits: an engine; for ZeRO also kind and ranks."""
    states = list(checkpoint.glob("global_step*/*_optim_states.pt"))
    if states:
        is_three = any(checkpoint.glob("global_step*/zero_pp_rank_*_model_states.pt"))
        return "DeepSpeed ZeRO-3" if is_three else "DeepSpeed ZeRO-1 or 2", len(states)
    return ("FSDP" if any(checkpoint.glob("pytorch_model_fsdp*")) else "one model a process",)


def engine_of(trainer: Trainer) -> tuple[str | int, ...]:
    """Return what `written_by` will say of the checkpoints of a Trainer."""
    state: Any = trainer.accelerator.state
    if trainer.is_deepspeed_enabled:
        is_three = state.deepspeed_plugin.zero_stage == 3
        kind = "DeepSpeed ZeRO-3" if is_three else "DeepSpeed ZeRO-1 or 2"
        return kind, trainer.accelerator.num_processes
    return ("FSDP" if trainer.is_fsdp_enabled else "one model a process",)


@contextmanager
def resumed_across(trainer: Any, checkpoint: str | bool | None) -> Iterator[None]:
    """Inside, a Trainer resumes from a checkpoint whatever engine has written it.

    Raises:
        ValueError: it is of another engine, and has no whole weights, or no model to put them in.
    """
    folder = None if isinstance(checkpoint, bool | None) else Path(checkpoint)
    if folder is None or not folder.is_dir() or written_by(folder) == engine_of(trainer):
        yield
        return
    before, now = (" ".join(map(str, of)) for of in (written_by(folder), engine_of(trainer)))
    warnings.warn(
        f"The checkpoint was written by another engine ({before}, now {now}): weights, masks and "
        "schedules go on, but the state of the optimizer and the choice of the best model begin "
        "anew.",
        stacklevel=3,
    )
    _load_weights(trainer, folder)
    with _not_loading(trainer, folder):
        yield


@contextmanager
def _not_loading(trainer: Any, folder: Path) -> Iterator[None]:
    """Inside, the Trainer takes no more than the state and the schedule of a checkpoint."""

    def load_scheduler(checkpoint: str) -> None:
        state = torch.load(Path(checkpoint) / SCHEDULER_NAME, map_location="cpu", weights_only=True)
        trainer.lr_scheduler.load_state_dict(state)

    def load_callbacks() -> None:  # when the state is there
        Trainer._load_callback_state(trainer)
        state = trainer.state
        state.best_metric = state.best_global_step = state.best_model_checkpoint = None

    def load_deepspeed(engine: Any, path: str, **options: Any) -> None:  # also the best model
        if Path(path) != folder:
            stock(engine, path, **options)

    module: Any = sys.modules[Trainer.__module__]
    stock = module.deepspeed_load_checkpoint
    module.deepspeed_load_checkpoint = load_deepspeed
    trainer._load_from_checkpoint = lambda *_, **__: None
    trainer._load_optimizer_and_scheduler = load_scheduler
    trainer._load_callback_state = load_callbacks
    try:
        yield
    finally:
        module.deepspeed_load_checkpoint = stock
        del trainer._load_from_checkpoint, trainer._load_optimizer_and_scheduler
        del trainer._load_callback_state


def _load_weights(trainer: Any, folder: Path) -> None:
    """Put the weights of a checkpoint into a model that no engine has divided yet."""
    model = bare_model(trainer)
    if trainer.model_init is not None or any(map(is_zero3, model.parameters())):
        raise ValueError(
            "resume_from_checkpoint of another engine needs a model that is whole before training; "
            "got model_init=, or one that ZeRO-3 has divided at loading. Build the model before "
            "TrainingArguments, and pass it as model=."
        )
    if not any(folder.glob("model*.safetensors")):
        raise ValueError(
            f"resume_from_checkpoint of another engine must hold whole weights; got '{folder}', "
            "which has no model.safetensors. Resume with the engine that wrote it, or save with "
            "FULL_STATE_DICT (FSDP) or stage3_gather_16bit_weights_on_model_save (ZeRO-3)."
        )
    files = dense_files(folder)
    state = {name: tensor for file in files for name, tensor in load_file(file).items()}
    loaded = model.load_state_dict(state, strict=False)
    check_all_loaded(model, loaded.missing_keys, loaded.unexpected_keys)
