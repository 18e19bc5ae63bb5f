"""What a run needs is checked before it starts."""

import warnings

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

from hf_cyclprune import PruningConfig, PruningTrainer

CONFIG = PruningConfig("cyclical", sparsity=0.8, num_cycles=4)  # cycles of 10 steps, climbs of 8
CONFIG_OF_ONE = PruningConfig(sparsity=0.8, num_cycles=1)


def test_a_schedule_that_cannot_restart_is_refused_at_construction(tiny_bert, arguments):
    args = TrainingArguments(**arguments(lr_scheduler_type="cosine_with_restarts"))
    with pytest.raises(ValueError, match=r"lr_scheduler_type .*lr_restarts=False"):
        PruningTrainer(model=tiny_bert(), args=args, pruning_config=CONFIG)
    config = PruningConfig("cyclical", sparsity=0.8, lr_restarts=False)
    PruningTrainer(model=tiny_bert(), args=args, pruning_config=config)


def test_a_schedule_without_what_it_needs_is_refused_at_construction(tiny_bert, arguments):
    kind = "warmup_stable_decay"
    args = TrainingArguments(**arguments(lr_scheduler_type=kind))
    with pytest.raises(ValueError, match=r"lr_scheduler_kwargs must fit .*num_decay_steps.*"):
        PruningTrainer(model=tiny_bert(), args=args, pruning_config=CONFIG)
    kwargs = {"num_decay_steps": 2}
    args = TrainingArguments(**arguments(lr_scheduler_type=kind, lr_scheduler_kwargs=kwargs))
    PruningTrainer(model=tiny_bert(), args=args, pruning_config=CONFIG)


def test_a_scheduler_of_the_users_own_is_refused_unless_restarts_are_off(tiny_bert, arguments):
    model = tiny_bert()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    args = TrainingArguments(**arguments())
    options = {"model": model, "args": args, "optimizers": (optimizer, scheduler)}
    with pytest.raises(ValueError, match=r"optimizers must not hold a scheduler.*ConstantLR"):
        PruningTrainer(**options, pruning_config=CONFIG)
    PruningTrainer(
        **options, pruning_config=PruningConfig("cyclical", sparsity=0.8, lr_restarts=False)
    )


def test_cycle_ends_without_data_to_evaluate_are_refused_before_training(train):
    config = PruningConfig(sparsity=0.8, eval_cycle_ends=True)
    with pytest.raises(ValueError, match="eval_cycle_ends needs an eval_dataset"):
        train(PruningTrainer, pruning_config=config, eval_dataset=None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_are_one_warning_and_the_remedy(train, tiny_bert, dtype):
    model = tiny_bert().to(dtype)
    args = {"max_steps": 2, "optim": "sgd"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(PruningTrainer, model=model, args=args, pruning_config=CONFIG_OF_ONE)
    (said,) = [str(w.message) for w in caught if "weights to prune are" in str(w.message)]
    assert f"are {dtype}".replace("torch.", "") in said
    assert "dtype=torch.float32, and train it with bf16=True or fp16=True" in said


def test_16_bits_in_the_forward_pass_alone_and_a_dense_run_are_no_reason_to_warn(train, tiny_bert):
    args = {"max_steps": 2, "bf16": True}
    train(PruningTrainer, args=args, pruning_config=CONFIG_OF_ONE)
    train(PruningTrainer, model=tiny_bert().bfloat16(), args={"max_steps": 2})


def test_the_older_fsdp_is_refused(train, tiny_bert):
    class FullyShardedDataParallel(nn.Module):
        """Stands for that of torch, which needs an accelerator."""

    model = tiny_bert()
    model.wrapped = FullyShardedDataParallel()
    with pytest.raises(
        ValueError, match=r"fsdp must be FSDP2, .*; got version 1\. Set fsdp_config"
    ):
        train(PruningTrainer, model=model, pruning_config=CONFIG)
