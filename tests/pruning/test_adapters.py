"""A model that trains through adapters is refused: their zeros are not those of its weights."""

import sys
import types

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_cyclprune import (
    PruningCallback,
    PruningConfig,
    PruningTrainer,
    SparsityReport,
    find_targets,
    prune_,
)

REFUSED = r"through adapters of peft; got a \w+ (at '.*query'|around).*merge_and_unload\(\)"
WHY_SKIPPED = "peft is optional: the stand-in above has what the check looks at"
CONFIG = PruningConfig(sparsity=0.8, lr_restarts=False)


class LoraLinear(nn.Module):
    """As peft's: the frozen layer inside, and the two matrices that are trained beside it."""

    def __init__(self, base_layer, r=4):
        super().__init__()
        self.base_layer = base_layer.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base_layer.in_features, r, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(r, base_layer.out_features, bias=False)})

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


LoraLinear.__module__ = "peft.tuners.lora.layer"


class OwnLora(LoraLinear):
    """A user's class, derived from one of peft."""


def with_stand_in(model, layer=LoraLinear):
    model.requires_grad_(False)
    for block in model.bert.encoder.layer:
        block.attention.self.query = layer(block.attention.self.query)
    return model


def with_peft_model(model):
    peft = pytest.importorskip("peft", reason=WHY_SKIPPED)
    return peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["query"]))


def with_injected_layers(model):
    """As `model.add_adapter` of transformers does: the model keeps its class."""
    peft = pytest.importorskip("peft", reason=WHY_SKIPPED)
    return peft.inject_adapter_in_model(peft.LoraConfig(r=4, target_modules=["query"]), model)


KINDS = [
    with_stand_in,
    lambda model: with_stand_in(model, OwnLora),
    with_peft_model,
    with_injected_layers,
]


@pytest.fixture(params=KINDS, ids=["stand-in", "subclass", "peft model", "injected"])
def adapted(request, tiny_bert):
    return request.param(tiny_bert())


@pytest.mark.parametrize("targets", [None, ["lora_A"]])
def test_targets_are_not_found_among_adapters(adapted, targets):
    with pytest.raises(ValueError, match=REFUSED):
        find_targets(adapted, targets)


@pytest.mark.parametrize("config", [CONFIG, PruningConfig(pattern="2:4")])
def test_one_shot_pruning_refuses_adapters_and_changes_nothing(adapted, config):
    before = {name: weight.clone() for name, weight in adapted.state_dict().items()}
    with pytest.raises(ValueError, match=REFUSED):
        prune_(adapted, config)
    assert all(torch.equal(weight, before[name]) for name, weight in adapted.state_dict().items())


def test_zeros_of_adapters_are_not_counted_as_those_of_the_model(adapted):
    with pytest.raises(ValueError, match=REFUSED):
        SparsityReport.measure(adapted)


@pytest.mark.parametrize("config", [CONFIG, PruningConfig(method="hold")], ids=["prune", "hold"])
@pytest.mark.parametrize("kind", [with_stand_in, with_peft_model])
def test_training_refuses_adapters(tiny_bert, train, kind, config):
    with pytest.raises(ValueError, match=REFUSED):
        train(PruningTrainer, model=kind(tiny_bert()), pruning_config=config)
    with pytest.raises(ValueError, match=REFUSED):
        train(Trainer, model=kind(tiny_bert()), callbacks=[PruningCallback(config)])


def test_a_merged_model_is_pruned_in_training(tiny_bert, train):
    adapted = with_peft_model(tiny_bert())
    model = adapted.merge_and_unload().requires_grad_(True)
    trainer = train(PruningTrainer, args={"max_steps": 8}, model=model, pruning_config=CONFIG)
    assert len(trainer.pruner.targets) == 12
    assert trainer.sparsity_report().is_at_target


def test_a_dense_trainer_trains_adapters_as_ever(adapted, tmp_path, examples):
    args = TrainingArguments(
        str(tmp_path), max_steps=1, use_cpu=True, report_to=[], save_strategy="no"
    )
    PruningTrainer(adapted, args, train_dataset=examples).train()


def test_the_check_does_not_import_peft(tiny_bert, monkeypatch):
    class Refusing(types.ModuleType):
        def __getattr__(self, name):
            raise AssertionError("peft was used")

    monkeypatch.setitem(sys.modules, "peft", Refusing("peft"))
    with pytest.raises(ValueError, match=REFUSED):
        find_targets(with_stand_in(tiny_bert()))
    assert find_targets(tiny_bert())
