"""Pruning changes nothing else of a training."""

import pytest
import torch
from transformers import Trainer

from hf_cyclprune import PruningArguments, PruningCallback, PruningConfig, PruningTrainer


def assert_same_weights(one, other):
    left, right = one.model.state_dict(), other.model.state_dict()
    assert list(left) == list(right)
    for name, weight in left.items():
        assert torch.equal(weight, right[name]), name


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "sgd"])
def test_the_callback_at_sparsity_0_is_bit_identical_to_trainer(train, optim):
    config = PruningConfig(sparsity=0.0, num_cycles=2, lr_restarts=False)
    args = {"optim": optim}
    with_callback = train(Trainer, args=args, callbacks=[PruningCallback(config)])
    assert_same_weights(train(Trainer, args=args), with_callback)


@pytest.mark.parametrize("args_cls", [None, PruningArguments])
def test_pruning_trainer_without_a_config_is_bit_identical_to_trainer(train, args_cls):
    options = {} if args_cls is None else {"args_cls": args_cls}
    args = {"gradient_accumulation_steps": 2, "max_steps": 10, "warmup_steps": 3}
    ours, theirs = train(PruningTrainer, args=args, **options), train(Trainer, args=args)
    assert_same_weights(theirs, ours)
    assert [set(entry) for entry in ours.state.log_history] == [
        set(entry) for entry in theirs.state.log_history
    ]


def test_parameters_optimizer_groups_and_keys_stay_what_they_were(train, tiny_bert):
    model = tiny_bert()
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    keys = list(model.state_dict())
    theirs = train(Trainer, args={"max_steps": 4})
    config = PruningConfig(sparsity=0.8, num_cycles=2)
    ours = train(PruningTrainer, args={"max_steps": 4}, model=model, pruning_config=config)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    assert list(model.state_dict()) == keys
    assert not any(p.grad_fn for p in model.parameters())

    def shapes(trainer):
        groups = trainer.optimizer.param_groups
        return [[tuple(p.shape) for p in group["params"]] for group in groups]

    assert shapes(ours) == shapes(theirs)


def test_the_saved_model_loads_in_a_stock_class_with_the_same_zeros(train, tmp_path):
    trainer = train(PruningTrainer, pruning_config=PruningConfig(sparsity=0.8, num_cycles=2))
    trainer.save_model(tmp_path / "saved")
    loaded = type(trainer.model).from_pretrained(tmp_path / "saved")
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name])
    assert "prun" not in (tmp_path / "saved" / "config.json").read_text()
