"""What a pruning run needs of the Trainer, the training engine and the model."""

import warnings
from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerState, TrainingArguments
from transformers.utils import logging

from hf_cyclprune.config import PruningConfig
from hf_cyclprune.engines.shards import Shards
from hf_cyclprune.pruning.targets import find_sparsity
from hf_cyclprune.reporting.numbers import percent
from hf_cyclprune.reporting.weights import MOST_ZEROS_BY_CHANCE
from hf_cyclprune.training.describe import bare_model
from hf_cyclprune.training.lr import check_restartable, check_scheduler, restarts
from hf_cyclprune.training.upstream import is_loss_inflated

logger = logging.get_logger(__name__)


def prepare_trainer(trainer: Trainer, config: PruningConfig) -> bool:
    """Check a Trainer, and return whether its loss is to be unscaled.

    Raises:
        ValueError: it cannot evaluate, make its learning rate, or restart it, as is demanded.
    """
    if config.eval_cycle_ends and trainer.eval_dataset is None:
        raise ValueError(
            "eval_cycle_ends needs an eval_dataset, but there is none. Pass one, or drop it."
        )
    if trainer.lr_scheduler is None:
        check_scheduler(trainer.args)
    if config.restarts_lr:
        check_restartable(trainer.args.lr_scheduler_type)
        if trainer.lr_scheduler is not None and not trainer._created_lr_scheduler:
            raise ValueError(
                "optimizers must not hold a scheduler while the learning rate restarts; got "
                f"{type(trainer.lr_scheduler).__name__}. Pass (optimizer, None), or "
                "lr_restarts=False."
            )
    return config.fix_loss_scaling and has_inflated_loss(trainer)


def has_inflated_loss(trainer: Trainer) -> bool:
    """Whether the Trainer multiplies its model's loss by accumulation steps and processes."""
    return trainer.model is not None and is_loss_inflated(bare_model(trainer))


def warn_of_scheduler(config: PruningConfig, lr_scheduler: object) -> None:
    """Warn if the learning rate should restart with the cycles, and does not."""
    if config.restarts_lr and not restarts(lr_scheduler):
        warnings.warn(
            "The learning rate does not restart with every pruning cycle in this Trainer. Use "
            "PruningTrainer with its own create_scheduler, pass optimizers= with "
            "get_restarting_scheduler to another Trainer, or set lr_restarts=False.",
            stacklevel=2,
        )


def warn_of_inflated_loss(config: PruningConfig, args: TrainingArguments, model: nn.Module) -> None:
    """Warn if a stock Trainer may multiply the loss, which the plain callback cannot undo."""
    factor = args.gradient_accumulation_steps
    if args.average_tokens_across_devices:
        factor *= args.world_size
    is_asked = config.fix_loss_scaling and isinstance(model, PreTrainedModel)
    if is_asked and factor > 1 and is_loss_inflated(model):
        warnings.warn(
            f"A stock Trainer makes the loss and its gradients {factor} times too large for "
            f"{type(model).__name__}, and fix_loss_scaling needs PruningTrainer. Set "
            "model.accepts_loss_kwargs = False before the Trainer is made, or pass "
            "fix_loss_scaling=False if this one has a loss of its own, or to leave it so.",
            stacklevel=2,
        )


def check_engine(model: nn.Module) -> None:
    """Raise a ValueError for a training engine that cannot keep zeros."""
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise ValueError(
            "fsdp must be FSDP2, since FSDP1 joins the weights into flat tensors; got version 1. "
            'Set fsdp_config={"version": 2, ...}, or "fsdp_version: 2" for accelerate launch.'
        )


def check_whole(shards: Shards) -> None:
    """Raise a ValueError where a process does not hold the whole of every weight."""
    if shards.ranks.is_divided:
        raise ValueError(
            "teacher='last_cycle' needs the whole model in every process, but FSDP or DeepSpeed "
            "divides it. Train with DistributedDataParallel, or choose another teacher."
        )


def claim_weights(state: TrainerState, targets: Iterable[str]) -> int:
    """Note in the state of a training, which all its callbacks see, that one prunes these weights.

    Returns how many have done so before.

    Raises:
        ValueError: another one prunes one of them too.
    """
    claimed: list[set[str]] = vars(state).setdefault("_pruned_weights", [])
    for name in targets:
        if any(name in others for others in claimed):
            raise ValueError(
                f"A weight must not be pruned by two callbacks; got '{name}' twice. Drop one of "
                "the callbacks, or divide the weights among them with targets= and ignore=."
            )
    claimed.append(set(targets))
    return len(claimed) - 1


def warn_of_low_precision(shards: Shards) -> None:
    """Warn if the optimizer moves weights of 16 bits, and no copy of them of 32 bits."""
    dtypes = {shard.weight.dtype for shard in shards.values()}
    low = [dtype for dtype in (torch.bfloat16, torch.float16) if dtype in dtypes]
    if low:
        name = str(low[0]).removeprefix("torch.")
        warnings.warn(
            f"The weights to prune are {name}: small updates are lost, so that pruned weights "
            "recover badly, and many weights tie in the ranking. Load the model with "
            "dtype=torch.float32, and train it with bf16=True or fp16=True.",
            stacklevel=2,
        )


def warn_of_zeros(shards: Shards) -> None:
    """Log a warning if a run starts from a sparse model, whose zeros the schedule may free."""
    share = find_sparsity(shards)
    if share > MOST_ZEROS_BY_CHANCE:
        logger.warning(
            f"The model already has {percent(share)} zeros in its target weights. They may all "
            "return, since the schedule begins anew; method='hold' keeps them."
        )
