import math

import pytest
import torch
from transformers import Trainer

from hf_cyclprune import PruningTrainer
from hf_cyclprune.glue.train_loss import LossTotal, train_loss_of


def train_with_total(train, **options):
    trainer = train(PruningTrainer, callbacks=[LossTotal()], **options)
    return train_loss_of(trainer)["train_loss"]


def test_the_loss_of_a_run_is_the_trainers_own(train):
    trainer = train(PruningTrainer, callbacks=[LossTotal()])
    logged = trainer.state.log_history[-1]["train_loss"]
    assert train_loss_of(trainer)["train_loss"] == pytest.approx(logged, rel=1e-6)


def test_a_resumed_run_has_the_loss_of_the_whole_run_to_the_last_digit(train, tmp_path):
    args = {"save_strategy": "steps", "save_steps": 10}
    whole = train_with_total(train, args=args)
    checkpoint = str(tmp_path / "out" / "checkpoint-20")
    assert train_with_total(train, args=args, resume=checkpoint) == whole


def test_a_checkpoint_without_the_sum_can_be_resumed(train, tmp_path):
    args = {"save_strategy": "steps", "save_steps": 10}
    train(Trainer, args=args)
    checkpoint = str(tmp_path / "out" / "checkpoint-30")
    assert train_with_total(train, args=args, resume=checkpoint) > 0


def test_losses_that_are_not_finite_are_left_out_of_the_mean():
    total = LossTotal()
    assert math.isnan(total.mean(1))
    for loss in (1.0, math.inf, 2.0, math.nan):
        total.on_loss(torch.tensor(loss))
    assert total.mean(num_steps=2) == 3.0
