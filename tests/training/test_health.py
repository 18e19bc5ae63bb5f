"""A run does not end as if all were well when its weights are not what they should be."""

import contextlib

import pytest
import torch
from transformers import Trainer, TrainerCallback

from hf_cyclprune import PruningArguments, PruningCallback, PruningConfig, PruningTrainer, prune_

CONFIG = PruningConfig(sparsity=0.8)


class Poison(TrainerCallback):
    """Makes the weights what a diverged run has, after an optimizer step."""

    def __init__(self, step, value=float("nan")):
        self.step, self.value = step, value

    def on_step_begin(self, args, state, control, *, model, **kwargs):
        if state.global_step == self.step - 1:
            model.bert.encoder.layer[1].output.dense.weight.data[:, 0] = self.value


BROKEN = r"weights must stay finite.*NaN or infinity after optimizer step {} of 8.*learning_rate"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("cls", [Trainer, PruningTrainer])
def test_weights_that_are_not_finite_end_a_run_at_the_end_of_a_cycle(train, cls, value):
    config = PruningConfig(sparsity=0.5, num_cycles=2, lr_restarts=False)
    options = {"callbacks": [PruningCallback(config), Poison(3, value)], "args": {"max_steps": 8}}
    with pytest.raises(ValueError, match=BROKEN.format(4)):
        train(cls, **options)


def test_weights_that_are_not_finite_end_a_run_at_an_evaluation(train):
    config = PruningConfig(sparsity=0.5, num_cycles=1)
    args = {"max_steps": 8, "eval_strategy": "steps", "eval_steps": 2}
    with pytest.raises(ValueError, match=BROKEN.format(4)):
        train(PruningTrainer, args=args, pruning_config=config, callbacks=[Poison(3)])


def test_weights_that_are_not_finite_end_a_run_that_holds_its_zeros(train, tiny_bert):
    model = tiny_bert()
    prune_(model, CONFIG)
    options = {"callbacks": [Poison(3)], "args": {"max_steps": 8}}
    with pytest.raises(ValueError, match=BROKEN.format(8)):
        train(PruningTrainer, model=model, pruning_config=PruningConfig(method="hold"), **options)


class SkipsOverflow(torch.optim.SGD):
    """As a GradScaler: takes no step with gradients that are not finite."""

    def step(self, closure=None):
        weights = [weight for group in self.param_groups for weight in group["params"]]
        if all(weight.grad is None or weight.grad.isfinite().all() for weight in weights):
            super().step(closure)


class Overflows(TrainerCallback):
    """Makes the gradients of the first steps infinite, as fp16 does with a scale too large."""

    def on_pre_optimizer_step(self, args, state, control, *, model, **kwargs):
        if state.global_step < 3:
            model.bert.encoder.layer[0].output.dense.weight.grad.fill_(float("inf"))


def test_steps_that_are_skipped_for_an_overflow_are_no_error(train, tiny_bert):
    model, config = tiny_bert(), PruningConfig(sparsity=0.8, num_cycles=4)
    optimizers = (SkipsOverflow(model.parameters(), lr=0.1), None)
    options = {"model": model, "optimizers": optimizers, "callbacks": [Overflows()]}
    trainer = train(PruningTrainer, args={"max_steps": 8}, pruning_config=config, **options)
    assert trainer.sparsity_report().is_at_target


@pytest.mark.parametrize("case", ["fp16 weights", "lr 1e30"])
def test_a_run_that_diverges_ends_with_an_error(train, tiny_bert, case):
    model = tiny_bert().half() if case == "fp16 weights" else tiny_bert()
    args = {"max_steps": 8, "optim": "adamw_torch"}
    args |= {"learning_rate": 1e30} if case == "lr 1e30" else {}
    config = PruningConfig(sparsity=0.8, num_cycles=1)
    warned = pytest.warns(UserWarning, match="The weights to prune are float16")
    with (
        warned if case == "fp16 weights" else contextlib.nullcontext(),
        pytest.raises(ValueError, match=BROKEN.format(8)),
    ):
        train(PruningTrainer, model=model, args=args, pruning_config=config)


def test_a_trial_of_a_search_that_diverges_leaves_the_others(tiny_bert, arguments, examples):
    optuna = pytest.importorskip("optuna")
    args = PruningArguments(**arguments(sparsity=0.5, max_steps=4, eval_strategy="epoch"))
    trainer = PruningTrainer(
        model_init=lambda trial: tiny_bert(),
        args=args,
        train_dataset=examples,
        eval_dataset=examples,
    )
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {
            "learning_rate": trial.suggest_categorical("learning_rate", [1e30, 1e-3])
        },
        n_trials=2,
        backend="optuna",
        direction="minimize",
        sampler=optuna.samplers.GridSampler({"learning_rate": [1e30, 1e-3]}),
    )
    assert best.hyperparameters == {"learning_rate": 1e-3}


class Unfreezes(TrainerCallback):
    """Gradual unfreezing: after a step, gradients reach the frozen weights too."""

    def on_step_end(self, args, state, control, *, model, **kwargs):
        if state.global_step == 4:
            model.requires_grad_(True)


@pytest.mark.parametrize("cls", [Trainer, PruningTrainer])
def test_weights_that_were_unfrozen_in_the_run_are_said_to_be_dense(train, tiny_bert, cls):
    model = tiny_bert()
    model.bert.encoder.layer[0].requires_grad_(False)
    options = {
        "args": {"max_steps": 8},
        "model": model,
        "optimizers": (torch.optim.SGD(model.parameters(), lr=0.1), None),
        "callbacks": [PruningCallback(PruningConfig(sparsity=0.8, num_cycles=1)), Unfreezes()],
    }
    with pytest.warns(UserWarning, match="6 target weights, .* frozen .* dense;.*layer.0") as seen:
        train(cls, **options)
    messages = [str(warning.message) for warning in seen]
    assert sum("at the start" in message for message in messages) == 1
    assert sum("will not be pruned" in message for message in messages) == 1
