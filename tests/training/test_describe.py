import os
import sys

import pytest

from hf_cyclprune import PruningConfig, PruningTrainer

HOME = os.path.expanduser("~")


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["/usr/bin/hf-cyclprune", "glue", "--seed", "1"], "hf-cyclprune glue --seed 1"),
        (["/x/hf_cyclprune/cli.py", "glue"], "python -m hf_cyclprune.cli glue"),
        (["/mine/run.py", "a b", "--hub_token=x"], "python run.py 'a b' '--hub_token=<token>'"),
        (["run.py", f"{HOME}/runs/a"], "python run.py '~/runs/a'"),
        (["/env/site-packages/ipykernel_launcher.py", "-f", "k.json"], None),
        (["/usr/bin/pytest"], None),
        ([""], None),
    ],
)
def test_the_command_is_the_one_that_a_person_typed(argv, shown, train, monkeypatch):
    trainer = train(PruningTrainer, pruning_config=PruningConfig(sparsity=0.8))
    monkeypatch.setattr(sys, "argv", argv)
    assert trainer.card_facts().record.command == shown


def test_hyperparameters_are_plain_values_of_what_was_chosen(train):
    args = {"optim": "adamw_torch", "weight_decay": 0.01, "bf16": True, "learning_rate": 3e-3}
    trainer = train(PruningTrainer, pruning_config=PruningConfig(sparsity=0.8), args=args)
    values = trainer.card_facts().record.hyperparameters
    assert values["optimizer"] == (
        "adamw_torch, betas (0.9, 0.999), epsilon 1e-08, weight_decay 0.01"
    )
    assert values["mixed_precision_training"] == "bf16"
    assert (values["learning_rate"], values["train_batch_size"]) == (3e-3, 4)
    assert values["lr_scheduler_type"] == "linear"


def test_versions_are_of_the_packages_that_are_there(train):
    trainer = train(PruningTrainer, pruning_config=PruningConfig(sparsity=0.8))
    versions = trainer.card_facts().record.versions
    assert {"hf_cyclprune", "transformers", "torch", "accelerate"} <= versions.keys()
    assert all(versions.values())


@pytest.mark.parametrize(
    ("name", "base"), [("google-bert/bert", "google-bert/bert"), ("/x/bert", None), ("", None)]
)
def test_only_a_name_on_the_hub_is_a_base_model(name, base, train, tiny_bert):
    model = tiny_bert()
    model.config._name_or_path = name
    trainer = train(PruningTrainer, model=model, pruning_config=PruningConfig(sparsity=0.8))
    assert trainer.card_facts().record.base_model == base
