"""A run starts and resumes with the right masks, and says so where it ends off target."""

from contextlib import ExitStack

import pytest
import torch
from transformers import Trainer, TrainerCallback

from hf_cyclprune import CRITERIA, PruningCallback, PruningConfig, PruningTrainer

CONFIG = PruningConfig("cyclical", sparsity=0.8, num_cycles=4)  # cycles of 10 steps, climbs of 8


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


def test_a_best_model_of_other_settings_is_forgotten(train, stop_at):
    args = best_args(load_best_model_at_end=True)
    low = PruningConfig("cyclical", sparsity=0.5, num_cycles=4)
    train(PruningTrainer, args=args, pruning_config=low, callbacks=[stop_at(15)])
    with pytest.warns(UserWarning, match=r"sparsity 0\.5 -> 0\.8"):
        trainer = train(PruningTrainer, args=args, pruning_config=CONFIG, resume=True)
    assert trainer.sparsity_report().is_at_target


def test_a_best_model_of_another_trainer_is_forgotten(train, stop_at):
    config = PruningConfig("cyclical", sparsity=0.8, num_cycles=4, lr_restarts=False)
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

    one_cycle = PruningConfig("cyclical", sparsity=0.8, num_cycles=1)
    with pytest.raises(ConnectionAbortedError):
        train(PruningTrainer, args=args, pruning_config=one_cycle, callbacks=[Crash()])
    config = PruningConfig("cyclical", sparsity=sparsity, num_cycles=1)
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
    config = PruningConfig("cyclical", sparsity=0.8, num_cycles=4, eval_cycle_ends=True)
    args = best_args(load_best_model_at_end=True, eval_steps=19, save_steps=19)
    trainer = train(PruningTrainer, args=args, pruning_config=config)
    assert trainer.state.best_model_checkpoint is not None
    assert trainer.sparsity_report().is_at_target


class CutShort(TrainerCallback):
    """Ends the training as a crash does, after the forward pass of a step."""

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        raise ConnectionAbortedError


@pytest.mark.parametrize("callbacks", [[], [CutShort()]], ids=["whole", "cut short"])
def test_a_run_leaves_no_hooks_on_the_model(train, tiny_bert, callbacks):
    model, config = tiny_bert(), PruningConfig(method="wanda", sparsity=0.5)
    with pytest.raises(ConnectionAbortedError) if callbacks else ExitStack():
        train(PruningTrainer, model=model, pruning_config=config, callbacks=callbacks)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_new_run_of_the_callback_removes_the_hooks_of_one_that_was_cut_short(train, tiny_bert):
    model, callback = tiny_bert(), PruningCallback(PruningConfig(method="wanda", sparsity=0.5))
    with pytest.raises(ConnectionAbortedError):
        train(Trainer, model=model, callbacks=[callback, CutShort()])
    old = callback.pruner.criterion.memory["square_sum"]
    before = {name: total.clone() for name, total in old.items()}
    train(Trainer, model=model, callbacks=[callback])
    assert all(torch.equal(old[name], before[name]) for name in old)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_evaluations_do_not_count_for_what_a_run_sees_of_the_inputs(train, monkeypatch):
    num_tokens = []
    see = CRITERIA["wanda"].observe_input

    def count(criterion, name, inputs):
        num_tokens.append(inputs.shape[:-1].numel())
        see(criterion, name, inputs)

    monkeypatch.setattr(CRITERIA["wanda"], "observe_input", count)
    args = {"eval_strategy": "steps", "eval_steps": 5}
    config = PruningConfig(method="wanda", sparsity=0.5)
    train(PruningTrainer, args=args, pruning_config=config)
    assert num_tokens == [4 * 8] * 12 * 40  # in 12 layers and 40 steps
