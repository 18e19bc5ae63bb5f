"""Runs that are changed, stopped or set up in unusual ways still end at the target, or say so."""

import pytest
import torch
from transformers import (
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import ExportableState

from hf_cyclprune import PruningArguments, PruningCallback, PruningConfig, PruningTrainer, prune_
from hf_cyclprune.reporting.folder import report_folder

CONFIG = PruningConfig(sparsity=0.8, num_cycles=4)  # cycles of 10 steps, climbs of 8


def stop_at(step, event="on_step_end"):
    """A callback that asks for a stop in one event of one step."""

    def stop(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == step
        return control

    return type("Stopper", (TrainerCallback,), {event: stop})()


def best_args(**options):
    return {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "metric_for_best_model": "loss",
        "greater_is_better": True,  # any metric will do
        **options,
    }


def test_evaluate_returns_what_trainer_returns(train):
    ours = train(PruningTrainer, pruning_config=CONFIG).evaluate()
    assert set(ours) == set(train(Trainer).evaluate())


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
    tiny_bert, arguments, examples, way
):
    cls = PruningArguments if way == "args.sparsity" else TrainingArguments
    args = cls(**arguments())
    trainer = PruningTrainer(tiny_bert(), args, train_dataset=examples, callbacks=[stop_at(5)])
    if way == "args.sparsity":
        args.sparsity = 0.8
    else:
        trainer.add_callback(PruningCallback(CONFIG))
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


def test_a_best_model_of_other_settings_is_forgotten(train):
    args = best_args(load_best_model_at_end=True)
    low = PruningConfig(sparsity=0.5, num_cycles=4)
    train(PruningTrainer, args=args, pruning_config=low, callbacks=[stop_at(15)])
    with pytest.warns(UserWarning, match=r"sparsity 0\.5 -> 0\.8"):
        trainer = train(PruningTrainer, args=args, pruning_config=CONFIG, resume=True)
    assert trainer.sparsity_report().is_at_target


def test_a_best_model_of_another_trainer_is_forgotten(train):
    config = PruningConfig(sparsity=0.8, num_cycles=4, lr_restarts=False)
    callbacks = [PruningCallback(config), stop_at(25)]
    with pytest.warns(UserWarning, match="not at the target"):
        train(Trainer, args=best_args(), callbacks=callbacks)
    args = best_args(load_best_model_at_end=True)
    trainer = train(PruningTrainer, args=args, pruning_config=config, resume=True)
    assert trainer.sparsity_report().is_at_target
    for name, weight in trainer.pruner.targets.items():
        assert torch.equal(weight != 0, trainer.pruner.masks[name])


@pytest.mark.parametrize(
    ("changes", "sparsity", "stop"), [({"max_steps": 28}, 0.8, 24), ({}, 0.9, 36)]
)
def test_a_resume_past_the_last_pruning_step_still_reaches_the_target(
    train, changes, sparsity, stop
):
    args = {"save_strategy": "steps", "save_steps": stop}

    class Crash(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == stop:
                raise ConnectionAbortedError

    one_cycle = PruningConfig(sparsity=0.8, num_cycles=1)
    with pytest.raises(ConnectionAbortedError):
        train(PruningTrainer, args=args, pruning_config=one_cycle, callbacks=[Crash()])
    config = PruningConfig(sparsity=sparsity, num_cycles=1)
    with pytest.warns(UserWarning, match="other settings"):
        trainer = train(
            PruningTrainer, args={**args, **changes}, pruning_config=config, resume=True
        )
    assert trainer.sparsity_report().is_at_target


def test_a_second_training_after_a_resume_starts_from_fresh_masks(train):
    args = {"save_strategy": "steps", "save_steps": 36}
    train(PruningTrainer, args=args, pruning_config=CONFIG)
    checkpoint = train(Trainer).args.output_dir + "/checkpoint-36"
    trainer = train(PruningTrainer, pruning_config=CONFIG, resume=checkpoint)
    assert trainer.pruning_callback.resume_folder is not None
    trainer.train()
    assert trainer.pruning_callback.resume_folder is None
    assert [c.end_step for c in trainer.sparsity_report().cycles] == [10, 20, 30, 40]


def test_a_preemption_with_a_checkpoint_stops_at_once(train, monkeypatch):
    from transformers.trainer_jit_checkpoint import CheckpointManager

    monkeypatch.setattr(CheckpointManager, "setup_signal_handler", lambda self: None)

    class Preempt(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 13:
                manager.is_checkpoint_requested = True

    class Remember(PruningTrainer):
        def __init__(self, *args, **kwargs):
            nonlocal manager
            super().__init__(*args, **kwargs)
            manager = next(
                c.jit_manager for c in self.callback_handler.callbacks if hasattr(c, "jit_manager")
            )

    manager = None
    with pytest.warns(UserWarning, match="not at the target"):
        trainer = train(
            Remember,
            args={"enable_jit_checkpoint": True},
            pruning_config=CONFIG,
            callbacks=[Preempt()],
        )
    assert trainer.state.global_step == 14


def test_a_stop_at_the_end_of_an_epoch_is_deferred_too(train):
    trainer = train(PruningTrainer, pruning_config=CONFIG, callbacks=[stop_at(16, "on_epoch_end")])
    assert trainer.state.global_step == 20


def test_a_stop_of_a_restored_callback_is_deferred_too(train):
    class Exported(TrainerCallback, ExportableState):
        def on_epoch_end(self, args, state, control, **kwargs):
            control.should_training_stop |= state.global_step == 32

        def state(self):
            return {"args": {}, "attributes": {}}

    args = {"save_strategy": "steps", "save_steps": 25, "num_train_epochs": 3}
    train(PruningTrainer, args=args, pruning_config=CONFIG, callbacks=[Exported()])
    folder = train(Trainer).args.output_dir + "/checkpoint-25"
    args["restore_callback_states_from_checkpoint"] = True
    trainer = train(
        PruningTrainer, args=args, pruning_config=CONFIG, callbacks=[Exported()], resume=folder
    )
    assert trainer.state.global_step == 40


def test_ctrl_c_warns_once_that_the_model_is_off_target(train):
    class CtrlC(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 15:
                raise KeyboardInterrupt

    with (
        pytest.warns(UserWarning, match="step 15 of 40 .* not at the target") as caught,
        pytest.raises(KeyboardInterrupt),
    ):
        train(PruningTrainer, pruning_config=CONFIG, callbacks=[CtrlC()])
    assert len(caught) == 1


def test_cycle_ends_that_are_evaluated_for_the_best_model_are_saved(train):
    config = PruningConfig(sparsity=0.8, num_cycles=4, eval_cycle_ends=True)
    args = best_args(load_best_model_at_end=True, eval_steps=19, save_steps=19)
    trainer = train(PruningTrainer, args=args, pruning_config=config)
    assert trainer.state.best_model_checkpoint is not None
    assert trainer.sparsity_report().is_at_target


def test_cycle_ends_without_data_to_evaluate_are_refused_before_training(train):
    config = PruningConfig(sparsity=0.8, eval_cycle_ends=True)
    with pytest.raises(ValueError, match="eval_cycle_ends must come with an eval_dataset"):
        train(PruningTrainer, pruning_config=config, eval_dataset=None)


def test_a_callback_without_any_config_is_refused(train):
    with pytest.raises(ValueError, match="PruningCallback must have a config"):
        train(Trainer, callbacks=[PruningCallback()])


def test_frozen_weights_are_not_held_against_the_run(train, tiny_bert, tmp_path):
    model = tiny_bert()
    model.bert.encoder.layer[0].requires_grad_(False)
    with pytest.warns(UserWarning, match="frozen"):
        trainer = train(PruningTrainer, model=model, pruning_config=CONFIG)
    trainer.save_model(tmp_path / "saved")
    assert trainer.sparsity_report().is_at_target
    report = report_folder(tmp_path / "saved")
    assert (report.num_zeros, report.is_at_target) == (1640, True)
    with pytest.warns(UserWarning, match="frozen"):
        assert prune_(model, CONFIG).is_at_target


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_cycles": 4, "max_steps": 3}, "num_cycles must not exceed"),
        ({"lr_scheduler_type": "cosine_with_restarts"}, "lr_scheduler_type must be"),
        ({"max_steps": 40, "warmup_steps": 9}, "warmup_steps must not outlast"),
    ],
)
def test_what_the_arguments_alone_show_is_refused_before_there_is_a_model(
    arguments, options, words
):
    with pytest.raises(ValueError, match=words):
        PruningArguments(**arguments(sparsity=0.5, **options))


def test_an_engine_that_shards_the_weights_is_refused(train, tiny_bert):
    model = tiny_bert()
    model.bert.encoder.layer[0].output.dense.weight.ds_id = 0
    with pytest.raises(ValueError, match="the training engine must keep whole weights"):
        train(PruningTrainer, model=model, pruning_config=CONFIG)


def test_a_trainer_between_ours_and_transformers_keeps_its_arguments(
    tiny_bert, arguments, examples
):
    class Distils(Trainer):
        def __init__(self, *args, teacher=None, **kwargs):
            super().__init__(*args, **kwargs)
            self.teacher = teacher

    class Both(PruningTrainer, Distils):
        pass

    args = TrainingArguments(**arguments(max_steps=8))
    trainer = Both(tiny_bert(), args, train_dataset=examples, teacher="t", pruning_config=CONFIG)
    trainer.train()
    assert trainer.teacher == "t"
    assert trainer.pruner.is_at_target
