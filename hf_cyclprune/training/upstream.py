"""Workarounds for faults of transformers: each function names one and says when it can be removed.

Seen in transformers 5.0.0 and 5.24, unless a function says otherwise.
"""

import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import TrainerState
from transformers.integrations import deepspeed
from transformers.trainer import TRAINER_STATE_NAME

_EFFICIENT = "FSDP_CPU_RAM_EFFICIENT_LOADING"
NO_BATCH: tuple[list[Any], None] = ([], None)
"""What `get_batch_samples` returns after the last step, so that a Trainer takes no further one.

Otherwise a run that is resumed from the checkpoint of its last step takes a step beyond max_steps,
unless an epoch ends there. Remove when the Trainer looks before it takes a step.
"""


@contextmanager
def own_names(model: Any) -> Iterator[None]:
    """Inside, save_pretrained writes the names and tensors of the model's state_dict.

    Otherwise it undoes what from_pretrained does with names and tensors of older files, such as
    `LayerNorm.gamma` of google-bert/bert-base-uncased, or the experts of a Mixtral, one by one. The
    Trainer reads its checkpoints without doing it again: a resumed run, or the best model, has
    weights from the start of training.
    Remove when https://github.com/huggingface/transformers/issues/48805 is fixed.
    """
    conversions = vars(model).get("_weight_conversions")
    model._weight_conversions = []
    try:
        yield
    finally:
        model._weight_conversions = conversions
        if conversions is None:
            del model._weight_conversions


@contextmanager
def loaded_whole() -> Iterator[None]:
    """Inside, from_pretrained returns a whole model in every process.

    Otherwise it divides any model as soon as there are TrainingArguments for ZeRO-3, and leaves it
    without weights in all processes but the first with FSDP's cpu_ram_efficient_loading, also one
    that no engine is going to train.
    Remove when from_pretrained has an argument for it.
    """
    config, efficient = deepspeed._hf_deepspeed_config_weak_ref, os.environ.pop(_EFFICIENT, None)
    deepspeed._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config
        if efficient is not None:
            os.environ[_EFFICIENT] = efficient


def is_loss_inflated(model: nn.Module) -> bool:
    """Whether the Trainer multiplies this model's loss by accumulation steps and processes.

    It leaves the division to every model whose forward takes any keyword, but BERT-style heads
    ignore `num_items_in_batch`. A model counts items if its forward, or one that it builds on, has
    this name or `self.loss_function`; its author may also say so by `accepts_loss_kwargs`.
    Remove when https://github.com/huggingface/transformers/issues/47688 is fixed.
    """
    if getattr(model, "accepts_loss_kwargs", None) is not None:
        return False
    forwards = [
        inspect.unwrap(vars(cls)["forward"])
        for cls in type(model).__mro__
        if inspect.isfunction(vars(cls).get("forward"))
    ]
    parameters = inspect.signature(forwards[0]).parameters if forwards else {}
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    counts_items = any(
        "loss_function" in forward.__code__.co_names
        or "num_items_in_batch" in inspect.signature(forward).parameters
        for forward in forwards
    )
    return takes_any and not counts_items


def keep_loss_unscaled(model: Any) -> None:
    """Tell every Trainer that is made with this model later to divide an inflated loss itself.
    Remove together with `is_loss_inflated`.
    """
    if is_loss_inflated(model):
        model.accepts_loss_kwargs = False


def take_failures(push_in_progress: Any) -> list[BaseException]:
    """Return the errors of background pushes, each of them once.

    `PushInProgress` waits for its jobs, but never looks at how they ended.
    Remove when the Trainer itself warns of a failed push.
    """
    if push_in_progress is None:
        return []
    ended = [job for job in push_in_progress.jobs if job.done() and not job.cancelled()]
    failed = [job for job in ended if job.exception() is not None]
    push_in_progress.jobs = [job for job in push_in_progress.jobs if job not in failed]
    return [job.exception() for job in failed]


def is_preempted(checkpoint: Path) -> bool:
    """Whether the Trainer saves this checkpoint because its process is about to be stopped.

    With `enable_jit_checkpoint`, only a file that lies in the folder meanwhile tells this stop from
    others.
    Remove when the callbacks can see a preemption.
    """
    return (checkpoint / "checkpoint-is-incomplete.txt").exists()


def forget_state(checkpoint: Path) -> None:
    """Delete the file of a checkpoint that is written last, before the rest is written over.

    The Trainer writes over a checkpoint of the same step file by file: if it is killed meanwhile,
    the old trainer_state.json makes the folder look whole.
    Remove when the Trainer replaces the folder as a whole.
    """
    (checkpoint / TRAINER_STATE_NAME).unlink(missing_ok=True)


def add_missing_state(state: TrainerState, name: str, values: Mapping[str, Any]) -> None:
    """Enter a stateful callback into a state that was loaded from a checkpoint without it.

    Otherwise the first save of the resumed run, which updates the states of all callbacks, raises a
    KeyError (since https://github.com/huggingface/transformers/pull/32115).
    Remove when the Trainer adds what is missing.
    """
    cast(dict[str, Any], state.stateful_callbacks).setdefault(name, values)
