import os
import sys

import pytest
import torch

from hf_cyclprune import PruningConfig, PruningTrainer

HOME = os.path.expanduser("~")


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["/usr/bin/hf-cyclprune", "glue", "--seed", "1"], "hf-cyclprune glue --seed 1"),
        (["/x/hf_cyclprune/cli.py", "glue"], "python -m hf_cyclprune.cli glue"),
        (["hf-cyclprune", "glue", "--hub_token=x"], "hf-cyclprune glue '--hub_token=<token>'"),
        (["hf-cyclprune", "push", f"{HOME}/a b"], "hf-cyclprune push '~/a b'"),
        (["/mine/run.py"], "python run.py"),
        (["/mine/run.py", "api.key=x", "--wandb_key", "x", "sql://u:p@h"], "python run.py ..."),
        (["/env/site-packages/ipykernel_launcher.py", "-f", "k.json"], None),
        (["/usr/bin/pytest"], None),
        ([""], None),
    ],
)
def test_the_command_is_the_one_that_a_person_typed(argv, shown, train, monkeypatch):
    trainer = train(PruningTrainer, pruning_config=PruningConfig(sparsity=0.8))
    monkeypatch.setattr(sys, "argv", argv)
    assert trainer.model_card().record.command == shown


def test_hyperparameters_are_plain_values_of_what_was_chosen(train):
    args = {"optim": "adamw_torch", "weight_decay": 0.01, "bf16": True, "learning_rate": 3e-3}
    trainer = train(PruningTrainer, pruning_config=PruningConfig(sparsity=0.8), args=args)
    values = trainer.model_card().record.hyperparameters
    assert values["optimizer"] == (
        "adamw_torch, betas (0.9, 0.999), epsilon 1e-08, weight_decay 0.01"
    )
    assert values["mixed_precision_training"] == "bf16"
    assert (values["learning_rate"], values["train_batch_size"]) == (3e-3, 4)
    assert values["lr_scheduler_type"] == "linear"


def test_versions_are_of_the_packages_that_are_there(train):
    trainer = train(PruningTrainer, pruning_config=PruningConfig(sparsity=0.8))
    versions = trainer.model_card().record.versions
    assert {"hf_cyclprune", "transformers", "torch", "accelerate"} <= versions.keys()
    assert all(versions.values())


@pytest.mark.parametrize(
    ("name", "base"), [("google-bert/bert", "google-bert/bert"), ("/x/bert", None), ("", None)]
)
def test_only_a_name_on_the_hub_is_a_base_model(name, base, train, tiny_bert):
    model = tiny_bert()
    model.config._name_or_path = name
    trainer = train(PruningTrainer, model=model, pruning_config=PruningConfig(sparsity=0.8))
    assert trainer.model_card().record.base_model == base


def test_an_optimizer_of_the_callers_own_is_recorded_instead_of_the_arguments(train, tiny_bert):
    model = tiny_bert()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    config = PruningConfig(sparsity=0.8, lr_restarts=False)
    options = {"model": model, "pruning_config": config, "optimizers": (optimizer, schedule)}
    values = train(PruningTrainer, **options).model_card().record.hyperparameters
    assert values["optimizer"].startswith("SGD, lr 0.5, momentum 0.9")
    assert values["lr_scheduler"] == "ConstantLR"
    assert not {"learning_rate", "lr_scheduler_type"} & values.keys()


def test_a_base_model_is_known_by_what_it_was_when_training_began(
    train, tiny_bert, monkeypatch, tmp_path
):
    (tmp_path / "base" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    model = tiny_bert()
    model.config._name_or_path = "base/model"
    trainer = train(PruningTrainer, model=model, pruning_config=PruningConfig(sparsity=0.8))
    monkeypatch.chdir("/")
    assert trainer.model_card().record.base_model is None


def test_a_run_resumed_with_another_schedule_says_so_from_then_on(train):
    args = {"save_strategy": "steps", "save_steps": 10}
    options = {"pruning_config": PruningConfig(sparsity=0.8, num_cycles=2), "args": args}
    assert train(PruningTrainer, **options).model_card().record.is_plan_kept
    args["max_steps"] = 60
    with pytest.warns(UserWarning, match="steps"):
        longer = train(PruningTrainer, resume=True, **options)
    assert not longer.model_card().record.is_plan_kept
    args["max_steps"], same = 60, longer.args.output_dir
    assert (
        not train(PruningTrainer, resume=f"{same}/checkpoint-50", **options)
        .model_card()
        .record.is_plan_kept
    )
