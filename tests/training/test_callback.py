import dataclasses
import warnings

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_cyclprune import (
    PruningArguments,
    PruningCallback,
    PruningConfig,
    PruningTrainer,
    get_restarting_scheduler,
)
from hf_cyclprune.training.callback import with_callback

CONFIG = PruningConfig("cyclical", sparsity=0.8, num_cycles=2, lr_restarts=False)


def test_a_stock_trainer_ends_at_the_exact_sparsity(train):
    callback = PruningCallback(CONFIG)
    trainer = train(Trainer, callbacks=[callback])
    report = callback.report(trainer.model)
    assert report.num_zeros == sum(round(0.8 * w.num_weights) for w in report.weights)
    assert report.is_at_target


def test_the_zeros_after_every_step_are_those_of_the_schedule(train):
    class Watch(PruningCallback):
        def on_step_end(self, args, state, control, **kwargs):
            for name, weight in self.pruner.targets.items():
                mask = self.pruner.masks[name]
                assert not weight[~mask].any()
                assert not torch.signbit(weight[~mask]).any()
            if self.pruner.schedule.is_pruning_step(state.global_step):
                sparsity = self.pruner.schedule.sparsity_at(state.global_step)
                assert self.pruner.num_pruned == self.pruner.demand(sparsity)
                seen.append(state.global_step)
            return super().on_step_end(args, state, control, **kwargs)

    seen = []
    train(Trainer, callbacks=[Watch(CONFIG)])
    assert {1, 17, 21, 37} <= set(seen)


def test_micro_batches_do_not_advance_the_schedule(train):
    """Batches of 8 and 8 micro-batches of 1 are equally sparse after every optimizer step."""

    class Watch(PruningCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen[args.train_batch_size].append((state.global_step, self.pruner.sparsity))
            return super().on_step_end(args, state, control, **kwargs)

    config, seen = dataclasses.replace(CONFIG, fix_loss_scaling=False), {8: [], 1: []}
    for batch_size, accumulation in [(8, 1), (1, 8)]:
        args = {
            "per_device_train_batch_size": batch_size,
            "gradient_accumulation_steps": accumulation,
            "max_steps": 20,
        }
        train(Trainer, args=args, callbacks=[Watch(config)])
    assert seen[8] == seen[1]
    assert len(seen[8]) == 20


def test_it_warns_once_that_the_learning_rate_does_not_restart(train):
    config = PruningConfig("cyclical", sparsity=0.8, num_cycles=2)
    with pytest.warns(UserWarning, match="does not restart") as caught:
        train(Trainer, callbacks=[PruningCallback(config)])
    assert sum("does not restart" in str(w.message) for w in caught) == 1


def test_it_warns_of_a_loss_that_it_cannot_mend(train, tiny_bert):
    args, model = {"gradient_accumulation_steps": 4, "max_steps": 4}, tiny_bert()
    with pytest.warns(UserWarning, match="gradients 4 times too large for BertForSequence"):
        train(Trainer, args=args, callbacks=[PruningCallback(CONFIG)])
    left = dataclasses.replace(CONFIG, fix_loss_scaling=False)
    model.accepts_loss_kwargs = False
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "A stock Trainer makes the loss")
        train(Trainer, args=args, callbacks=[PruningCallback(left)])
        train(Trainer, args=args, callbacks=[PruningCallback(CONFIG)], model=model)


def test_it_is_silent_when_the_learning_rate_restarts_by_our_function(train, tiny_bert):
    config = PruningConfig("cyclical", sparsity=0.8, num_cycles=2)
    model = tiny_bert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = get_restarting_scheduler("linear", optimizer, config.build_schedule(40))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train(
            Trainer,
            model=model,
            optimizers=(optimizer, scheduler),
            callbacks=[PruningCallback(config)],
        )


def test_it_refuses_to_load_the_best_model_and_names_the_remedy(tiny_bert, arguments, examples):
    args = arguments(load_best_model_at_end=True, eval_strategy="steps", save_strategy="steps")
    with pytest.raises(ValueError, match=r"load_best_model_at_end must be False.*PruningTrainer"):
        Trainer(
            model=tiny_bert(),
            args=TrainingArguments(**args),
            eval_dataset=examples,
            callbacks=[PruningCallback(CONFIG)],
        )


def test_without_a_config_it_reads_the_training_arguments(train):
    callback = PruningCallback()
    args = {"sparsity": 0.5, "lr_restarts": False}
    train(Trainer, args=args, args_cls=PruningArguments, callbacks=[callback])
    assert callback.pruner.is_at_target
    assert callback.pruner.schedule.sparsity == 0.5


def test_a_config_in_both_places_is_refused(tiny_bert, arguments):
    args = PruningArguments(**arguments(sparsity=0.5))
    with pytest.raises(ValueError, match=r"pruning_config must be given once"):
        Trainer(model=tiny_bert(), args=args, callbacks=[PruningCallback(CONFIG)])


def test_more_cycles_than_steps_are_refused_before_training(train):
    config = PruningConfig(sparsity=0.5, num_cycles=50, lr_restarts=False)
    with pytest.raises(ValueError, match=r"num_cycles must not exceed .*40.*got 50"):
        train(Trainer, callbacks=[PruningCallback(config)])


def test_nan_weights_are_refused_before_training(train, tiny_bert):
    model = tiny_bert()
    model.bert.encoder.layer[1].output.dense.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"target weight '.*layer\.1\.output\.dense.*NaN"):
        train(Trainer, model=model, callbacks=[PruningCallback(CONFIG)])


def test_training_that_ends_off_target_warns_and_the_report_says_so(train):
    class Stop(PruningCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 25
            return control

    callback = Stop(CONFIG)
    with pytest.warns(
        UserWarning, match="step 25 of 40 at a sparsity of .* not at the target of 80.00%"
    ) as seen:
        trainer = train(Trainer, callbacks=[callback])
    assert len(seen) == 1
    report = callback.report(trainer.model)
    assert not report.is_at_target
    assert "not at the target of 80.00%" in str(report)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:8"])
def test_nm_is_exact_at_the_end(train, pattern):
    callback = PruningCallback(PruningConfig(pattern=pattern, num_cycles=2, lr_restarts=False))
    trainer = train(Trainer, callbacks=[callback])
    n, m = map(int, pattern.split(":"))
    for weight in callback.pruner.targets.values():
        assert ((weight.view(-1, m) != 0).sum(-1) == n).all()
    assert pattern in callback.report(trainer.model).patterns


@pytest.mark.parametrize("criterion", ["gradient", "taylor", "random"])
def test_other_criteria_train_to_the_same_sparsity(train, criterion):
    config = PruningConfig(sparsity=0.8, criterion=criterion, num_cycles=2, lr_restarts=False)
    callback = PruningCallback(config)
    trainer = train(Trainer, callbacks=[callback])
    assert callback.report(trainer.model).is_at_target


def test_a_callback_without_any_config_is_refused(train):
    with pytest.raises(ValueError, match="PruningCallback needs a config"):
        train(Trainer, callbacks=[PruningCallback()])


@pytest.mark.parametrize("make", [PruningCallback, with_callback])
def test_a_dict_in_the_place_of_a_config_is_refused_with_what_to_write(make):
    name = "pruning_config" if make is with_callback else "config"
    rule = rf"^{name} must be a PruningConfig; got \{{'sparsity': 0.8\}}\. Write PruningConfig\("
    with pytest.raises(ValueError, match=rf"{rule}sparsity=0\.8\)\.$"):
        make({"sparsity": 0.8})
    with pytest.raises(ValueError, match=r"got 0\.8\. Write PruningConfig\(sparsity=0\.9\)"):
        make(0.8)
    with pytest.raises(ValueError, match=rf"^{name} must be a PruningConfig"):
        make({})


class ClassifierOfABody:
    """As SetFitModel: no module, but it holds one."""

    def __init__(self, body):
        self.model_body = body


@pytest.mark.parametrize("has_st_model", [True, False])
def test_a_trainer_that_wraps_its_model_is_pruned_inside_of_it(
    tiny_bert, arguments, examples, has_st_model
):
    args = TrainingArguments(**arguments())
    trainer = Trainer(model=tiny_bert(), args=args, train_dataset=examples)
    handler, body = trainer.callback_handler, trainer.model
    wrapped, stock = ClassifierOfABody(body), handler.call_event
    seen = []

    def call_event(*event, **others):  # as the Trainer of SetFit does, with both or with one
        handler.model = wrapped
        seen.append(event[0])
        return stock(*event, **others, **({"st_model": body} if has_st_model else {}))

    handler.call_event = call_event
    callback = PruningCallback(CONFIG)
    trainer.add_callback(callback)
    trainer.train()
    assert "on_train_begin" in seen
    for model in (wrapped, body):
        assert callback.report(model).is_at_target


def test_a_trainer_without_a_module_is_refused():
    callback = PruningCallback(CONFIG)
    args, state = TrainingArguments("out", use_cpu=True), TrainerState(max_steps=4)
    with pytest.raises(ValueError, match=r"nn\.Module.* got function"):
        callback.on_train_begin(args, state, TrainerControl(), model=print_nothing)


def print_nothing():
    """Anything but a module."""


class Shakes(TrainerCallback):
    """Changes every weight after a step, as a moving average that is kept by hand may."""

    def __init__(self, event, step):
        self.event, self.step = event, step
        setattr(self, event, self.shake)

    def shake(self, args, state, control, *, model, **kwargs):
        if state.global_step == self.step:
            with torch.no_grad():
                for weight in model.parameters():
                    weight.add_(1e-3)


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)], ids=["before", "after"])
def test_it_warns_if_a_checkpoint_has_values_where_weights_are_pruned(train, order):
    callbacks = [Shakes("on_step_end", 8), PruningCallback(CONFIG)][order]
    args = {"save_strategy": "steps", "save_steps": 4, "max_steps": 9}
    with pytest.warns(UserWarning, match=r"non-zero values where '.*query.*' is pruned") as seen:
        train(Trainer, args=args, callbacks=callbacks)
    assert sum("non-zero" in str(w.message) for w in seen) == 1


def test_it_warns_if_training_ends_with_values_where_weights_are_pruned(train):
    callbacks = [PruningCallback(CONFIG), Shakes("on_step_end", 8)]
    with pytest.warns(UserWarning, match=r"non-zero values where '.*query.*' is pruned"):
        train(Trainer, args={"max_steps": 8}, callbacks=callbacks)


def test_a_change_that_the_next_step_undoes_before_a_save_is_no_warning(train):
    args = {"save_strategy": "steps", "save_steps": 4, "max_steps": 8}
    train(Trainer, args=args, callbacks=[Shakes("on_step_end", 6), PruningCallback(CONFIG)])


SECOND = PruningConfig(pattern="2:4", num_cycles=1, targets=["value"])


@pytest.mark.parametrize("cls", [Trainer, PruningTrainer])
@pytest.mark.parametrize("second", [PruningConfig(sparsity=0.5, lr_restarts=False), SECOND])
def test_two_callbacks_that_prune_the_same_weight_are_refused(train, cls, second):
    with pytest.raises(ValueError, match=r"pruned by two callbacks.*'.*(query|value).*'.*ignore="):
        train(cls, callbacks=[PruningCallback(CONFIG), PruningCallback(second)])


def test_two_callbacks_can_prune_different_weights_in_one_training_after_another(train):
    first = PruningConfig(sparsity=0.8, num_cycles=1, ignore=["value"])
    callbacks = [PruningCallback(first), PruningCallback(SECOND)]
    trainer = train(Trainer, args={"max_steps": 8}, callbacks=callbacks)
    trainer.train()
    for callback in callbacks:
        assert callback.report(trainer.model).is_at_target


def test_a_callback_of_a_training_that_broke_off_does_not_own_its_weights(train, tiny_bert):
    class Breaks(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise ConnectionAbortedError

    model, first = tiny_bert(), PruningCallback(CONFIG)
    with pytest.raises(ConnectionAbortedError):
        train(Trainer, model=model, callbacks=[first, Breaks()])
    train(Trainer, args={"max_steps": 8}, model=model, callbacks=[PruningCallback(CONFIG)])


def test_training_arguments_that_prune_need_something_that_reads_them(train):
    with pytest.raises(ValueError, match=r"nothing .*prunes.*PruningTrainer.*PruningCallback\(\)"):
        train(Trainer, args={"sparsity": 0.8}, args_cls=PruningArguments)
    train(Trainer, args={"max_steps": 2}, args_cls=PruningArguments)  # they do not prune


def test_a_callback_that_is_added_later_reads_the_training_arguments(
    tiny_bert, arguments, examples
):
    args = PruningArguments(**arguments(sparsity=0.8, max_steps=8, lr_restarts=False))
    trainer = Trainer(model=tiny_bert(), args=args, train_dataset=examples)
    callback = PruningCallback()
    trainer.add_callback(callback)
    trainer.train()
    trainer.train()
    assert callback.report(trainer.model).is_at_target
    args = PruningArguments(**arguments(sparsity=0.8))
    other = Trainer(model=tiny_bert(), args=args, train_dataset=examples)
    with pytest.raises(ValueError, match="prunes"):  # the callback is not this Trainer's
        other.train()


def test_a_loop_of_ones_own_can_read_the_training_arguments(arguments):
    args = PruningArguments(**arguments(sparsity=0.8, warmup_steps=0.1))
    config = args.pruning_config()
    assert args.get_warmup_steps(config.build_schedule(40).cycle_length(0)) == 2
