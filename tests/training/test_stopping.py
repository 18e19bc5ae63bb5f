"""Training stops, and a best model is chosen, only at the target sparsity."""

import pytest
import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from hf_cyclprune import PruningConfig, PruningTrainer

CONFIG = PruningConfig("cyclical", sparsity=0.8, num_cycles=4)  # cycles of 10 steps, climbs of 8


def test_off_target_evaluations_do_not_touch_patience_or_best_metric(watched):
    stopper = EarlyStoppingCallback(early_stopping_patience=3)
    trainer = watched(callbacks=[stopper])
    # At the target in steps 9, 10, 19, 20, ..; the metric is best at 9 and equal afterwards.
    assert trainer.state.global_step == 20
    assert stopper.early_stopping_patience_counter == 3
    assert trainer.sparsity_report().is_at_target


@pytest.mark.parametrize("event", ["on_step_end", "on_evaluate", "on_log", "on_save"])
def test_a_stop_asked_for_off_target_waits_for_the_end_of_the_cycle(watched, event):
    def stop(self, args, state, control, **kwargs):
        if state.global_step == 13:
            control.should_training_stop = True
        return control

    stopper = type("Stopper", (TrainerCallback,), {event: stop})()
    trainer = watched(callbacks=[stopper], args={"logging_steps": 1})
    assert trainer.state.global_step == 20
    assert trainer.sparsity_report().is_at_target


def test_a_stop_asked_for_at_the_target_is_immediate(watched):
    class Stopper(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop |= state.global_step == 19

    assert watched(callbacks=[Stopper()]).state.global_step == 19


def test_a_callback_added_later_is_still_seen_by_the_gate(tiny_bert, arguments, examples):
    class Stopper(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop |= state.global_step == 5

    trainer = PruningTrainer(
        model=tiny_bert(),
        args=TrainingArguments(**arguments()),
        train_dataset=examples,
        pruning_config=CONFIG,
    )
    trainer.add_callback(Stopper())
    trainer.train()
    assert trainer.state.global_step == 10


def test_with_rising_levels_training_never_stops_below_the_target(watched):
    config = PruningConfig(sparsity=0.8, method="rising", reset_ratio=0.5)
    stopper = EarlyStoppingCallback(early_stopping_patience=1)
    trainer = watched(callbacks=[stopper], pruning_config=config)
    assert trainer.sparsity_report().is_at_target
    assert trainer.state.best_metric == pytest.approx(0.2, abs=2e-3)


def test_exhausted_data_end_the_run_with_a_warning(tiny_bert, arguments, examples):
    class Short(torch.utils.data.IterableDataset):
        passes = 0

        def __iter__(self):
            Short.passes += 1
            return iter(examples if Short.passes < 2 else [])

    trainer = PruningTrainer(
        model=tiny_bert(),
        args=TrainingArguments(**arguments(accelerator_config={"dispatch_batches": False})),
        train_dataset=Short(),
        pruning_config=CONFIG,
    )
    with pytest.warns(UserWarning, match=r"step 16 of 40 .* not at the target"):
        trainer.train()


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


def test_a_stop_at_the_end_of_an_epoch_is_deferred_too(train, stop_at):
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
