import json
import warnings
from dataclasses import replace

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_cyclprune import PruningArguments, PruningCallback, PruningConfig, PruningTrainer, prune_
from hf_cyclprune.reporting.folder import report_folder

CONFIG = PruningConfig(sparsity=0.8, num_cycles=4)
CYCLICAL = PruningConfig("cyclical", sparsity=0.8, num_cycles=4)  # 10 steps each, climbs of 8


def zeros(model):
    return sum(
        int((p == 0).sum()) for n, p in model.named_parameters() if ".layer." in n and p.dim() == 2
    )


def test_the_learning_rate_restarts_with_every_cycle(train):
    trainer = train(PruningTrainer, args={"logging_steps": 1}, pruning_config=CYCLICAL)
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert rates == pytest.approx([1e-2 * (1 - u / 10) for u in range(10)] * 4)


def test_warmup_is_counted_per_cycle(train):
    args = {"logging_steps": 1, "warmup_steps": 0.2, "max_steps": 40}
    trainer = train(PruningTrainer, args=args, pruning_config=CYCLICAL)
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert [rates[e] for e in (0, 10, 20, 30)] == [0.0] * 4
    assert [rates[e + 2] for e in (0, 10, 20, 30)] == pytest.approx([1e-2] * 4)


def test_a_warmup_longer_than_the_climb_is_refused(train):
    with pytest.raises(ValueError, match=r"warmup_steps must not outlast .* 8 .*got 9"):
        train(PruningTrainer, args={"warmup_steps": 9}, pruning_config=CYCLICAL)


def test_every_log_entry_holds_sparsity_and_cycle(train):
    args = {"eval_strategy": "steps", "eval_steps": 10}
    trainer = train(PruningTrainer, args=args, pruning_config=CONFIG)
    history = trainer.state.log_history
    assert all({"sparsity", "cycle"} <= set(entry) for entry in history)
    assert [entry["cycle"] for entry in history if "eval_loss" in entry] == [1, 2, 3, 4]
    assert history[-1]["sparsity"] == trainer.pruner.sparsity == zeros(trainer.model) / 4096


def test_tensorboard_shows_sparsity_and_cycle(train, tmp_path, monkeypatch):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    train(PruningTrainer, args={"report_to": ["tensorboard"]}, pruning_config=CONFIG)
    (folder,) = {path.parent for path in (tmp_path).rglob("events.out.tfevents.*")}
    events = event_accumulator.EventAccumulator(str(folder)).Reload()
    scalars = [event.value for event in events.Scalars("train/sparsity")]
    assert scalars[-1] == pytest.approx(0.8, abs=1e-3)
    assert [event.value for event in events.Scalars("train/cycle")][-1] == 4


def test_it_evaluates_and_saves_at_the_end_of_every_cycle_on_request(train):
    ends = {"eval_cycle_ends": True, "save_cycle_ends": True}
    config = PruningConfig("cyclical", sparsity=0.8, num_cycles=4, **ends)
    trainer = train(PruningTrainer, pruning_config=config)
    evaluated = [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert evaluated == [10, 20, 30, 40]
    for step in evaluated:
        folder = f"{trainer.args.output_dir}/checkpoint-{step}"
        assert zeros(type(trainer.model).from_pretrained(folder)) == zeros(trainer.model)
        with open(f"{folder}/sparsity_report.json") as file:
            report = json.load(file)
        assert report["is_at_target"]
        assert len(report["cycles"]) == step // 10


def test_the_best_model_is_one_at_the_target_and_its_masks_are_in_memory(watched):
    trainer = watched()
    assert trainer.state.best_metric == pytest.approx(0.2, abs=2e-3)
    assert trainer.state.best_global_step in (9, 10)  # the first at the target
    assert trainer.sparsity_report().is_at_target
    for name, weight in trainer.pruner.targets.items():
        assert torch.equal(weight != 0, trainer.pruner.masks[name])


def test_a_config_given_twice_is_refused(tiny_bert, arguments):
    args = PruningArguments(**arguments(sparsity=0.5))
    with pytest.raises(ValueError, match="pruning_config must be given once"):
        PruningTrainer(model=tiny_bert(), args=args, pruning_config=CONFIG)
    with pytest.raises(ValueError, match="pruning_config must be given once"):
        PruningTrainer(
            model=tiny_bert(),
            args=TrainingArguments(**arguments()),
            pruning_config=CONFIG,
            callbacks=[PruningCallback(CONFIG)],
        )


def test_a_callback_that_is_passed_in_is_adopted(train):
    trainer = train(PruningTrainer, callbacks=[PruningCallback(CYCLICAL)])
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert rates[:2] == rates[2:4] == rates[4:6]
    assert trainer.sparsity_report().is_at_target


def test_the_pruning_callback_comes_before_the_users(tiny_bert, arguments):
    class Users(TrainerCallback):
        pass

    args = TrainingArguments(**arguments())
    users = Users()
    trainer = PruningTrainer(tiny_bert(), args, callbacks=[users], pruning_config=CONFIG)
    order = trainer.callback_handler.callbacks
    assert order.index(trainer.pruning_callback) < order.index(users)


def test_a_second_training_starts_from_fresh_masks(train):
    trainer = train(PruningTrainer, pruning_config=CONFIG)
    first = trainer.pruner
    trainer.train()
    assert trainer.pruner is not first
    assert len(trainer.sparsity_report().cycles) == 4


def test_hyperparameter_search_varies_the_sparsity(tiny_bert, arguments, examples):
    pytest.importorskip("optuna")
    trainer = PruningTrainer(
        model_init=lambda trial: tiny_bert(),
        args=PruningArguments(
            **arguments(sparsity=0.5, num_cycles=2, max_steps=20, eval_strategy="epoch")
        ),
        train_dataset=examples,
        eval_dataset=examples,
    )
    seen = []

    class Watch(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            seen.append((trainer.pruner.schedule.sparsity, zeros(trainer.model)))

    trainer.add_callback(Watch())
    trainer.hyperparameter_search(
        hp_space=lambda trial: {"sparsity": trial.suggest_float("sparsity", 0.2, 0.9)},
        n_trials=3,
        backend="optuna",
        direction="minimize",
    )
    assert len({sparsity for sparsity, _ in seen}) == 3
    for sparsity, count in seen:
        assert count == pytest.approx(sparsity * 4096, abs=12)


@pytest.mark.parametrize("config", [CONFIG, CYCLICAL], ids=["default", "cyclical"])
def test_a_user_sees_no_warning_in_a_plain_run(train, config):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train(PruningTrainer, pruning_config=config)


def test_pruning_trainer_takes_the_positional_arguments_of_trainer(tiny_bert, arguments, examples):
    args = TrainingArguments(**arguments())
    trainer = PruningTrainer(tiny_bert(), args, None, examples, pruning_config=CONFIG)
    trainer.train()
    assert isinstance(trainer, Trainer)
    assert trainer.sparsity_report().is_at_target


def test_an_argument_too_many_or_given_twice_is_a_type_error_as_in_trainer(tiny_bert, arguments):
    args = TrainingArguments(**arguments())
    for cls in (Trainer, PruningTrainer):
        with pytest.raises(TypeError, match="multiple values"):
            cls(tiny_bert(), args, args=args)
        with pytest.raises(TypeError, match="argument"):
            cls(*range(20))


def test_what_is_saved_inside_a_cycle_has_the_zeros_of_the_masks(train, tmp_path):
    config = PruningConfig(sparsity=0.8, num_cycles=2)
    trainer = train(PruningTrainer, args={"max_steps": 40}, pruning_config=config)
    weight = next(iter(trainer.pruner.targets.values()))
    mask = next(iter(trainer.pruner.masks.values()))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trainer.save_model(tmp_path / "saved")
    for value in (1.0, -0.0):
        with torch.no_grad():
            weight.masked_fill_(~mask, value)
        with pytest.warns(UserWarning, match=r"non-zero values where '.*query.*' is pruned"):
            trainer.save_model(tmp_path / "saved")
    trainer.pruner.apply_masks_()
    assert trainer.pruner.policy.find_unmasked() is None


def test_a_search_optimizes_the_loss_and_not_the_sparsity(tiny_bert, arguments, examples):
    pytest.importorskip("optuna")
    trainer = PruningTrainer(
        model_init=lambda trial: tiny_bert(),
        args=PruningArguments(**arguments(sparsity=0.5, num_cycles=2, eval_strategy="epoch")),
        train_dataset=examples,
        eval_dataset=examples,
    )
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {"sparsity": trial.suggest_float("sparsity", 0.2, 0.9)},
        n_trials=1,
        backend="optuna",
        direction="minimize",
    )
    losses = [e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e]
    assert best.objective == pytest.approx(losses[-1])


@pytest.mark.parametrize("way", ["args.sparsity", "add_callback"])
def test_pruning_that_begins_after_construction_has_gate_and_loss_fix(
    tiny_bert, arguments, examples, stop_at, way
):
    cls = PruningArguments if way == "args.sparsity" else TrainingArguments
    args = cls(**arguments())
    trainer = PruningTrainer(tiny_bert(), args, train_dataset=examples, callbacks=[stop_at(5)])
    if way == "args.sparsity":
        args.method, args.sparsity = "cyclical", 0.8
    else:
        trainer.add_callback(PruningCallback(CYCLICAL))
    assert trainer.model_accepts_loss_kwargs
    trainer.train()
    assert trainer.state.global_step == 10
    assert trainer.sparsity_report().is_at_target
    assert not trainer.model_accepts_loss_kwargs


def test_the_class_of_the_callback_is_enough_with_pruning_arguments(train):
    trainer = train(
        PruningTrainer,
        args={"sparsity": 0.8},
        args_cls=PruningArguments,
        callbacks=[PruningCallback],
    )
    assert trainer.sparsity_report().is_at_target


def test_frozen_weights_are_not_held_against_the_run(train, tiny_bert, tmp_path):
    model = tiny_bert()
    model.bert.encoder.layer[0].requires_grad_(False)
    with pytest.warns(UserWarning, match="frozen"):
        trainer = train(PruningTrainer, model=model, pruning_config=CONFIG)
    trainer.save_model(tmp_path / "saved")
    assert trainer.sparsity_report().is_at_target
    report = report_folder(tmp_path / "saved")
    assert (report.num_zeros, report.is_at_target) == (1638, True)
    with pytest.warns(UserWarning, match="frozen"):
        assert prune_(model, replace(CONFIG, scope="global")).is_at_target


def test_a_trainer_between_ours_and_transformers_keeps_its_arguments(
    tiny_bert, arguments, examples
):
    class Distils(Trainer):
        def __init__(self, *args, config=None, **kwargs):
            super().__init__(*args, **kwargs)
            self.own_config = config

    class Both(PruningTrainer, Distils):
        pass

    args = TrainingArguments(**arguments(max_steps=8))
    trainer = Both(tiny_bert(), args, train_dataset=examples, config="t", pruning_config=CONFIG)
    trainer.train()
    assert trainer.own_config == "t"
    assert trainer.pruner.is_at_target


def test_a_callback_can_receive_the_loss_of_every_micro_batch(train):
    class Listens(TrainerCallback):
        losses = []

        def on_loss(self, loss):
            self.losses.append(float(loss))

    args = {"max_steps": 5, "gradient_accumulation_steps": 2}
    trainer = train(PruningTrainer, args=args, callbacks=[Listens()])
    assert len(Listens.losses) == 10
    mean = trainer.state.log_history[-1]["train_loss"]
    assert sum(Listens.losses) / 5 == pytest.approx(mean)
