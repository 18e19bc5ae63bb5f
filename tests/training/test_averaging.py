"""The average of the last weights: by hand, with exact zeros, and the same after a resume."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import BertForSequenceClassification, Trainer, TrainerCallback

from hf_cyclprune import PruningArguments, PruningCallback, PruningConfig, PruningTrainer
from hf_cyclprune.files import AVERAGE_NAME
from hf_cyclprune.pruning.schedules import Schedule
from hf_cyclprune.training.averaging import WeightAverage, first_fixed_step

# Two cycles of 20 steps: the last climb ends at step 37.
CONFIG = PruningConfig("cyclical", sparsity=0.8, num_cycles=2, ema_decay=0.7)
FIRST = 37
FIXED = Schedule(0.5, 10, ramp_ratio=0.0)


class Weights(TrainerCallback):
    """Keeps the weights after every step; stops as a crash does once a step is saved."""

    def __init__(self, crash_at=None):
        self.crash_at = crash_at
        self.of_step = {}

    def on_step_end(self, args, state, control, model, **kwargs):
        self.of_step[state.global_step] = copy.deepcopy(model.state_dict())

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.crash_at:
            raise ConnectionAbortedError


def assert_same(one, other):
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name


def test_three_steps_by_hand():
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, 0.5, FIXED)
    for t, value in enumerate((1.0, 2.0, 4.0), start=1):
        model.weight.data.fill_(value)
        average.update(t, is_recomputed=t == 1, is_pending=False)
    wanted = (0.25 * 1 + 0.5 * 2 + 1 * 4) / (0.25 + 0.5 + 1)
    assert average.values["weight"].item() == pytest.approx(wanted)
    assert model.weight.item() == 4.0
    average.apply_()
    assert average.is_applied
    assert model.weight.item() == pytest.approx(wanted)


def test_masks_that_change_later_begin_the_average_anew():
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, 0.5, FIXED)
    for t, (is_recomputed, is_pending) in enumerate(
        [(True, False), (False, True), (True, False), (False, False)], start=1
    ):
        model.weight.data.fill_(t)
        average.update(t, is_recomputed=is_recomputed, is_pending=is_pending)
        assert average.num_steps == (1, 0, 1, 2)[t - 1]
    assert float(average.values["weight"]) == pytest.approx((0.5 * 3 + 4) / 1.5)


def test_only_weights_that_are_trained_are_averaged_and_in_fp32():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)).bfloat16()
    average = WeightAverage(model, 0.0, FIXED)
    for t in (1, 2):
        average.update(t, is_recomputed=False, is_pending=False)
    assert average.values.keys() == {"0.weight", "0.bias"}
    assert all(value.dtype == torch.float32 for value in average.values.values())
    before = copy.deepcopy(model.state_dict())
    average.apply_()
    assert_same(before, model.state_dict())


def test_it_begins_where_the_masks_are_fixed():
    assert first_fixed_step(CONFIG.build_schedule(40)) == FIRST
    assert first_fixed_step(PruningConfig(method="hold").build_schedule(40, 0.5)) == 1
    for options in ({"ramp_ratio": 1.0}, {"recompute": "always", "interval_steps": 1}):
        config = PruningConfig("cyclical", sparsity=0.8, num_cycles=2, **options)
        with pytest.raises(ValueError, match=r"ema_decay must .*step, 40\. Lower ramp_ratio"):
            first_fixed_step(config.build_schedule(40))


def test_masks_that_are_never_fixed_are_refused_before_training(train, arguments):
    with pytest.raises(ValueError, match="ema_decay must come with fixed masks"):
        PruningArguments(**arguments(sparsity=0.8, ramp_ratio=1.0, ema_decay=0.9))
    watch = Weights()
    config = PruningConfig(sparsity=0.8, ramp_ratio=1.0, ema_decay=0.9)
    with pytest.raises(ValueError, match="ema_decay must come with fixed masks"):
        train(PruningTrainer, pruning_config=config, callbacks=[watch])
    assert not watch.of_step


@pytest.mark.parametrize("pruned_weights", ["zero", "stored", "latent", "decay"])
@pytest.mark.parametrize("kind", ["trainer", "callback"])
def test_at_the_end_the_model_holds_the_average_with_its_zeros(train, kind, pruned_weights):
    watch, config = Weights(), copy.copy(CONFIG)
    config.pruned_weights, config.lr_restarts = pruned_weights, kind == "trainer"
    if kind == "trainer":
        options = {"cls": PruningTrainer, "pruning_config": config, "callbacks": [watch]}
    else:
        options = {"cls": Trainer, "callbacks": [PruningCallback(config), watch]}
    trainer = train(**options)
    shares = [0.7**3, 0.7**2, 0.7, 1.0]
    for name, weight in trainer.model.named_parameters():
        past = [share * watch.of_step[FIRST + i][name] for i, share in enumerate(shares)]
        torch.testing.assert_close(weight.data, sum(past) / sum(shares), msg=name)
    run = next(c.run for c in trainer.callback_handler.callbacks if hasattr(c, "run"))
    assert run.is_averaged
    for name, weight in run.pruner.targets.items():
        assert torch.equal(weight != 0, run.pruner.masks[name]), name
    assert run.pruner.policy.find_unmasked() is None


def test_evaluations_and_checkpoints_inside_have_the_weights_of_their_step(train, tmp_path):
    watch = Weights()
    args = {"save_strategy": "steps", "save_steps": 40, "eval_strategy": "steps", "eval_steps": 40}
    trainer = train(PruningTrainer, args=args, pruning_config=CONFIG, callbacks=[watch])
    folder = Path(trainer.args.output_dir) / "checkpoint-40"
    saved = BertForSequenceClassification.from_pretrained(folder)
    assert_same(watch.of_step[40], saved.state_dict())
    assert (folder / AVERAGE_NAME).is_file()

    (logged,) = (e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e)
    assert trainer.model_card().record.metrics == {}, "the average was not evaluated"
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] != logged
    assert trainer.model_card().record.metrics["eval_loss"] == metrics["eval_loss"]

    trainer.save_model(tmp_path / "saved")
    assert not (tmp_path / "saved" / AVERAGE_NAME).exists()
    model = BertForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert_same(trainer.model.state_dict(), model.state_dict())


def test_a_best_model_that_is_loaded_stays(watched):
    config = PruningConfig("cyclical", sparsity=0.8, num_cycles=4, ema_decay=0.7)
    watch = Weights()
    trainer = watched(pruning_config=config, callbacks=[watch])
    assert not trainer.pruning_run.is_averaged
    assert_same(watch.of_step[trainer.state.best_global_step], trainer.model.state_dict())


@pytest.mark.parametrize("step", [20, FIRST, 38])
def test_an_interrupted_run_ends_bit_identical(train, tmp_path, step):
    def run(folder, crash_at=None, resume=None):
        args = {"output_dir": str(tmp_path / folder), "save_strategy": "steps", "save_steps": step}
        watch = Weights(crash_at)
        options = {"args": args, "pruning_config": CONFIG, "callbacks": [watch]}
        return train(PruningTrainer, resume=resume, **options)

    whole = run("whole")
    with pytest.raises(ConnectionAbortedError):
        run("interrupted", crash_at=step)
    folder = tmp_path / "interrupted" / f"checkpoint-{step}"
    assert (folder / AVERAGE_NAME).is_file() is (step >= FIRST)
    resumed = run("interrupted", resume=True)
    assert resumed.pruning_run.is_averaged
    assert_same(whole.model.state_dict(), resumed.model.state_dict())
    assert_same(whole.pruning_run.average.values, resumed.pruning_run.average.values)


def test_an_average_of_other_weights_or_without_a_file_is_refused(tmp_path):
    average = WeightAverage(nn.Linear(1, 1), 0.5, FIXED)
    save_file({"a": torch.zeros(1)}, tmp_path / AVERAGE_NAME, metadata={"num_steps": "1"})
    with pytest.raises(ValueError, match=r"average is not of .* at 'a'\. Resume with the same"):
        average.resume(tmp_path, 5)
    with pytest.raises(ValueError, match=r"must be left out .*step 1\. PruningTrainer saves"):
        average.resume(None, 5)
    average.save(tmp_path, {})
    assert not (tmp_path / AVERAGE_NAME).exists(), "it was of other steps"
    average.resume(tmp_path, 5)
    assert average.num_steps == 0
