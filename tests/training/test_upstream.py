"""The faults of transformers are there, and are mended."""

import os
from concurrent.futures import Future

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback
from transformers.integrations import deepspeed
from transformers.trainer_callback import ExportableState
from transformers.utils.hub import PushInProgress

from hf_cyclprune import PruningConfig, PruningTrainer
from hf_cyclprune.training.upstream import (
    add_missing_state,
    is_loss_inflated,
    keep_loss_unscaled,
    loaded_whole,
    take_failures,
)

CONFIG = PruningConfig(sparsity=0.5, num_cycles=2)


@pytest.fixture(params=["gamma", "weight"])
def load(request, tiny_bert, tmp_path):
    """Loads a tiny BERT from a file with the old or the new names."""
    model = tiny_bert()
    with torch.no_grad():
        model.bert.embeddings.LayerNorm.weight.add_(0.25)
    model.save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    old = {"LayerNorm.weight": f"LayerNorm.{request.param}"}
    old["LayerNorm.bias"] = "LayerNorm.beta" if request.param == "gamma" else "LayerNorm.bias"

    def rename(name):
        for new, former in old.items():
            name = name.replace(new, former)
        return name

    weights = {rename(name): weight for name, weight in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    return lambda: AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")


def test_a_checkpoint_has_the_names_of_the_model_and_what_is_saved_loads(load, train, tmp_path):
    model, args = load(), {"save_strategy": "steps", "save_steps": 40}
    trainer = train(PruningTrainer, args=args, model=model, pruning_config=CONFIG)
    checkpoint = load_file(tmp_path / "out" / "checkpoint-40" / "model.safetensors")
    assert checkpoint.keys() == model.state_dict().keys()
    trainer.save_model(tmp_path / "saved")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name


def test_a_resumed_run_has_its_layer_norms(load, train, tmp_path):
    args = {"save_strategy": "steps", "save_steps": 10}
    whole = train(PruningTrainer, args=args, model=load(), pruning_config=CONFIG)
    checkpoint = tmp_path / "out" / "checkpoint-20"
    resumed = train(
        PruningTrainer, args=args, model=load(), pruning_config=CONFIG, resume=str(checkpoint)
    )
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight), name


def test_the_best_model_has_its_layer_norms(load, train, tmp_path):
    """Every evaluation is worse than the one before: the best is the first at the target."""
    values = iter(range(100, 0, -1))
    args = {
        "save_strategy": "steps",
        "eval_strategy": "steps",
        "save_steps": 5,
        "eval_steps": 5,
        "load_best_model_at_end": True,
        "metric_for_best_model": "value",
        "greater_is_better": True,
    }
    trainer = train(
        PruningTrainer,
        args=args,
        model=load(),
        pruning_config=CONFIG,
        compute_metrics=lambda prediction: {"value": next(values)},
    )
    best = load_file(f"{trainer.state.best_model_checkpoint}/model.safetensors")
    assert trainer.state.best_global_step < 40
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(best[name], weight), name


def test_without_a_config_nothing_is_changed(load, train, tmp_path):
    names = []
    for cls in (Trainer, PruningTrainer):
        trainer = train(cls, model=load())
        trainer.save_model(tmp_path / cls.__name__)
        names.append(load_file(tmp_path / cls.__name__ / "model.safetensors").keys())
    assert names[0] == names[1]


HEADS = ["Bert", "Roberta", "DistilBert", "Electra", "Albert", "DebertaV2", "ModernBert", "MPNet"]


@pytest.mark.parametrize("name", HEADS)
def test_classification_heads_ignore_the_number_of_items(name):
    head = getattr(transformers, f"{name}ForSequenceClassification")
    assert is_loss_inflated(object.__new__(head))


def test_causal_language_models_count_items_themselves():
    assert not is_loss_inflated(object.__new__(transformers.LlamaForCausalLM))


@pytest.mark.parametrize("is_fixed", [True, False])
def test_accumulation_does_not_change_the_gradient_while_pruning(train, is_fixed):
    config = PruningConfig(sparsity=0.5, num_cycles=1, fix_loss_scaling=is_fixed)
    norms = []
    for batch_size, accumulation in [(16, 1), (4, 4)]:
        args = {
            "max_steps": 1,
            "logging_steps": 1,
            "per_device_train_batch_size": batch_size,
            "gradient_accumulation_steps": accumulation,
        }
        trainer = train(PruningTrainer, args=args, pruning_config=config)
        norms.append(trainer.state.log_history[0]["grad_norm"])
    is_same = norms[1] == pytest.approx(norms[0], rel=0.5)  # dropout differs
    assert is_same == is_fixed


def test_without_a_config_the_loss_is_that_of_trainer(tiny_bert, arguments):
    args = transformers.TrainingArguments(**arguments())
    ours = PruningTrainer(model=tiny_bert(), args=args)
    theirs = transformers.Trainer(model=tiny_bert(), args=args)
    assert ours.model_accepts_loss_kwargs == theirs.model_accepts_loss_kwargs


class Counts(torch.nn.Module):
    def forward(self, labels=None, num_items_in_batch=None, **kwargs):
        return labels.sum() / num_items_in_batch


class Delegates(transformers.LlamaForCausalLM):
    def forward(self, input_ids=None, **kwargs):
        return super().forward(input_ids, **kwargs)


class Says(transformers.BertForSequenceClassification):
    accepts_loss_kwargs = True


@pytest.mark.parametrize("cls", [Counts, Delegates, Says])
def test_a_model_that_counts_items_in_its_own_way_is_left_alone(cls):
    assert not is_loss_inflated(object.__new__(cls))


def test_a_model_whose_loss_is_kept_unscaled_tells_every_trainer(tiny_bert, arguments):
    args = transformers.TrainingArguments(**arguments())
    model = tiny_bert()
    keep_loss_unscaled(model)
    assert not Trainer(model=model, args=args).model_accepts_loss_kwargs
    counts = Says(model.config)
    keep_loss_unscaled(counts)
    assert Trainer(model=counts, args=args).model_accepts_loss_kwargs


def test_the_failures_of_background_pushes_are_taken_once():
    failed, done, running, cancelled = (Future() for _ in range(4))
    failed.set_exception(OSError("no network"))
    done.set_result(None)
    cancelled.cancel()
    push = PushInProgress([failed, done, running, cancelled])
    assert [str(error) for error in take_failures(push)] == ["no network"]
    assert take_failures(push) == take_failures(None) == []
    assert push.jobs == [done, running, cancelled]


@pytest.mark.parametrize("is_mended", [True, False])
def test_a_stateful_callback_may_join_a_resumed_run(train, is_mended):
    class Joins(TrainerCallback, ExportableState):
        def state(self):
            return {"args": {}, "attributes": {}}

        def on_train_begin(self, args, state, control, **kwargs):
            if is_mended:
                add_missing_state(state, "Joins", self.state())

    args = {"save_strategy": "steps", "save_steps": 10, "max_steps": 20}
    checkpoint = f"{train(Trainer, args=args).args.output_dir}/checkpoint-10"
    options = {"args": args, "callbacks": [Joins()], "resume": checkpoint}
    if is_mended:
        assert "Joins" in train(Trainer, **options).state.stateful_callbacks
    else:
        with pytest.raises(KeyError):  # if this fails, add_missing_state is not needed any more
            train(Trainer, **options)


def test_a_model_that_no_engine_trains_is_loaded_whole(monkeypatch):
    class Zero3:
        def is_zero3(self):
            return True

    config = Zero3()
    monkeypatch.setattr(deepspeed, "_hf_deepspeed_config_weak_ref", lambda: config)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    with loaded_whole():
        assert not deepspeed.is_deepspeed_zero3_enabled()
        assert "FSDP_CPU_RAM_EFFICIENT_LOADING" not in os.environ
    assert deepspeed.is_deepspeed_zero3_enabled()
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"
