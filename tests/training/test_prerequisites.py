"""What a run needs is checked before it starts."""

import pytest
import torch
from transformers import TrainingArguments

from hf_cyclprune import PruningConfig, PruningTrainer

CONFIG = PruningConfig(sparsity=0.8, num_cycles=4)  # cycles of 10 steps, climbs of 8


def test_a_schedule_that_cannot_restart_is_refused_at_construction(tiny_bert, arguments):
    args = TrainingArguments(**arguments(lr_scheduler_type="cosine_with_restarts"))
    with pytest.raises(ValueError, match=r"lr_scheduler_type .*lr_restarts=False"):
        PruningTrainer(model=tiny_bert(), args=args, pruning_config=CONFIG)
    config = PruningConfig(sparsity=0.8, lr_restarts=False)
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
    PruningTrainer(**options, pruning_config=PruningConfig(sparsity=0.8, lr_restarts=False))


def test_cycle_ends_without_data_to_evaluate_are_refused_before_training(train):
    config = PruningConfig(sparsity=0.8, eval_cycle_ends=True)
    with pytest.raises(ValueError, match="eval_cycle_ends needs an eval_dataset"):
        train(PruningTrainer, pruning_config=config, eval_dataset=None)


def test_an_engine_that_shards_the_weights_is_refused(train, tiny_bert):
    model = tiny_bert()
    model.bert.encoder.layer[0].output.dense.weight.ds_id = 0
    with pytest.raises(ValueError, match="not supported: they shard the weights"):
        train(PruningTrainer, model=model, pruning_config=CONFIG)
