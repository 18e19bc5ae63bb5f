"""A run that is interrupted anywhere goes on as if nothing had happened, bit for bit."""

import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback

from hf_cyclprune import CRITERIA, METHODS, PruningCallback, PruningConfig, PruningTrainer
from hf_cyclprune.config import config_to_dict
from hf_cyclprune.files import STATE_NAME
from hf_cyclprune.pruning.pruned_weights import PRUNED_WEIGHTS
from hf_cyclprune.pruning.snapshot import take_snapshot
from hf_cyclprune.training.resume import warn_of_changes
from hf_cyclprune.training.state import PruningState, load_state, save_state

# Two cycles of 20 steps, climbs of 16; with warm-up the edge, step 21, has a learning rate of 0.
INSIDE_RAMP, ON_EDGE, IN_FINE_TUNING = 26, 21, 38
PATTERNS = {
    "layer": {"sparsity": 0.8},
    "global": {"sparsity": 0.8, "scope": "global"},
    "2:4": {"pattern": "2:4"},
}


class Interrupt(TrainerCallback):
    """Stops as a crash does: nothing after the checkpoint of this step is written."""

    def __init__(self, step):
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise ConnectionAbortedError


@pytest.fixture(autouse=True)
def _folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def folder_of(is_interrupted):
    """Runs that are cut short and resumed share a folder; whole runs have another."""
    return Path("interrupted" if is_interrupted else "whole").absolute()


def run(
    train,
    kind,
    config,
    *,
    warmup=0,
    interrupt=None,
    resume=None,
    limit=None,
    saves=False,
    save_steps=1,
):
    """A run of 40 steps; interrupted ones save. `kind`: our Trainer or the plain callback."""
    saves = saves or interrupt or resume
    args = {
        "output_dir": str(folder_of(saves)),
        "save_strategy": "steps" if saves else "no",
        "save_steps": save_steps,
        "save_total_limit": limit,
        "warmup_steps": warmup,
        "max_grad_norm": 1.0,
    }
    callbacks = [Interrupt(interrupt)] if interrupt else []
    if kind == "trainer":
        options = {"cls": PruningTrainer, "pruning_config": config, "callbacks": callbacks}
    else:
        options = {"cls": Trainer, "callbacks": [PruningCallback(config), *callbacks]}
    return train(args=args, resume=resume, **options)


def forget_state(step):
    """Leave what another Trainer alone would have saved."""
    (folder_of(True) / f"checkpoint-{step}" / STATE_NAME).unlink()


def pruner_of(trainer):
    return next(
        c.pruner for c in trainer.callback_handler.callbacks if isinstance(c, PruningCallback)
    )


def assert_same(one, other):
    for name, weight in one.model.state_dict().items():
        assert torch.equal(weight, other.model.state_dict()[name]), name
    for name, mask in pruner_of(one).masks.items():
        assert torch.equal(mask, pruner_of(other).masks[name]), name


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", ["trainer", "callback"])
def test_an_interrupted_run_ends_bit_identical(train, kind, pattern):
    config = PruningConfig(
        "cyclical", num_cycles=2, lr_restarts=kind == "trainer", **PATTERNS[pattern]
    )
    whole = run(train, kind, config)
    for step, save_steps in [(INSIDE_RAMP, 13), (ON_EDGE, 7), (IN_FINE_TUNING, 19)]:
        shutil.rmtree(folder_of(True), ignore_errors=True)
        with pytest.raises(ConnectionAbortedError):
            run(train, kind, config, interrupt=step, limit=1, save_steps=save_steps)
        if kind == "callback":
            forget_state(step)
        resumed = run(train, kind, config, resume=True, limit=1, save_steps=save_steps)
        assert resumed.state.global_step == 40
        assert_same(whole, resumed)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", ["trainer", "callback"])
def test_a_reset_that_was_pending_happens_after_the_resume(train, kind, pattern, monkeypatch):
    """Where the learning rate is 0 the reset waits, and the checkpoint of that step knows it."""
    monkeypatch.setattr(Trainer, "create_scheduler", _scheduler_with_a_pause)
    monkeypatch.setattr(PruningTrainer, "create_scheduler", _scheduler_with_a_pause)
    config = PruningConfig(
        "cyclical", num_cycles=2, lr_restarts=kind == "trainer", **PATTERNS[pattern]
    )
    whole = run(train, kind, config)
    with pytest.raises(ConnectionAbortedError):
        run(train, kind, config, interrupt=ON_EDGE, save_steps=7)

    folder = folder_of(True) / f"checkpoint-{ON_EDGE}"
    weights = load_file(folder / "model.safetensors")
    zeros = sum(int((weights[name] == 0).sum()) for name in pruner_of(whole).targets)
    assert zeros == sum(pruner_of(whole).num_pruned), "the reset has not happened yet"
    assert load_state(folder).pending
    if kind == "callback":
        forget_state(ON_EDGE)

    assert_same(whole, run(train, kind, config, resume=True, save_steps=7))


def _scheduler_with_a_pause(self, num_training_steps, optimizer=None):
    """A constant learning rate, but 0 in the step of the edge."""

    def factor(finished):
        return 0.0 if finished == ON_EDGE - 1 else 1.0

    factor.num_restarts = 1  # it passes for one that restarts
    self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
    self._created_lr_scheduler = True
    return self.lr_scheduler


def test_a_reset_that_happened_late_is_accepted_by_the_callback(train, monkeypatch):
    monkeypatch.setattr(Trainer, "create_scheduler", _scheduler_with_a_pause)
    config = PruningConfig(
        "cyclical", sparsity=0.8, num_cycles=2, lr_restarts=False, interval_steps=5
    )
    whole = run(train, "callback", config)
    with pytest.raises(ConnectionAbortedError):
        run(train, "callback", config, interrupt=ON_EDGE + 2, save_steps=23)
    forget_state(ON_EDGE + 2)
    assert_same(whole, run(train, "callback", config, resume=True, save_steps=13))


def test_the_cycles_of_the_report_survive_the_resume(train):
    config = PruningConfig("cyclical", sparsity=0.8, num_cycles=2)
    whole = run(train, "trainer", config).sparsity_report()
    with pytest.raises(ConnectionAbortedError):
        run(train, "trainer", config, interrupt=INSIDE_RAMP, save_steps=13)
    assert run(train, "trainer", config, resume=True, save_steps=13).sparsity_report() == whole


def test_a_warmed_up_run_resumes_bit_identical(train):
    config = PruningConfig("cyclical", sparsity=0.8, num_cycles=2)
    whole = run(train, "trainer", config, warmup=3)
    with pytest.raises(ConnectionAbortedError):
        run(train, "trainer", config, warmup=3, interrupt=ON_EDGE, save_steps=7)
    assert_same(whole, run(train, "trainer", config, warmup=3, resume=True, save_steps=7))


@pytest.mark.parametrize(
    ("method", "wanted"),
    [(name, {"sparsity": 0.8}) for name in METHODS if name != "hold"]
    + [(name, {"pattern": "1:4"}) for name in ("dpf", "rigl", "greg", "movement", "swap")],
    ids=str,
)
def test_every_method_resumes_bit_identical(train, method, wanted):
    check_a_resume(train, PruningConfig(method=method, **wanted), INSIDE_RAMP)


@pytest.mark.parametrize(
    ("criterion", "pruned_weights"),
    [(name, "stored") for name in CRITERIA] + [("fisher", name) for name in PRUNED_WEIGHTS],
)
def test_every_policy_and_criterion_resumes_bit_identical(train, criterion, pruned_weights):
    options = {"criterion": criterion, "pruned_weights": pruned_weights, "pruned_decay": 0.01}
    regrowth = {"regrowth": "benefit", "regrowth_at": "edges", "protect_ratio": 0.5}
    config = PruningConfig(sparsity=0.8, num_cycles=4, reset_ratio=1.0, **options, **regrowth)
    check_a_resume(train, config, 23)


def check_a_resume(train, config, step):
    """Go on from a checkpoint that the whole run has left on its way."""
    whole = run(train, "trainer", config, saves=True, save_steps=step)
    checkpoint = str(folder_of(True) / f"checkpoint-{step}")
    resumed = run(train, "trainer", config, resume=checkpoint, save_steps=step)
    assert resumed.state.global_step == 40
    assert_same(whole, resumed)
    assert snapshots_are_equal(whole.pruner, resumed.pruner)


def snapshots_are_equal(one, other):
    first, second = take_snapshot(one), take_snapshot(other)
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) for key in first
    )


def cut_short(train, method, step):
    """A run of the callback that a crash stops at this step; the next one goes on."""
    config = PruningConfig(method=method, sparsity=0.8, lr_restarts=False)
    with pytest.raises(ConnectionAbortedError):
        run(train, "callback", config, interrupt=step, save_steps=step)
    return config, folder_of(True) / f"checkpoint-{step}"


@pytest.mark.parametrize("method", ["cyclical", PruningConfig.method, "swap", "wanda", "platon"])
def test_the_callback_resumes_what_zeros_alone_do_not_tell(train, method):
    config, _ = cut_short(train, method, INSIDE_RAMP)
    whole = run(train, "callback", config)
    assert_same(whole, run(train, "callback", config, resume=True))


@pytest.mark.parametrize("method", [PruningConfig.method, "swap", "wanda", "platon"])
def test_the_callback_refuses_to_rebuild_what_zeros_do_not_tell(train, method):
    config, folder = cut_short(train, method, INSIDE_RAMP)
    (folder / STATE_NAME).unlink()
    with pytest.raises(ValueError, match="also remembers values of pruned weights"):
        run(train, "callback", config, resume=True)


def test_a_callback_whose_average_is_not_there_refuses_that_of_another_run(train, tmp_path):
    elsewhere = tmp_path / "checkpoint-of-the-run"
    config, other = (
        PruningConfig("gradual", sparsity=0.8, ema_decay=0.9, criterion=criterion)
        for criterion in ("magnitude", "random")
    )
    for one in (config, other):
        with pytest.raises(ConnectionAbortedError):
            run(train, "callback", one, interrupt=IN_FINE_TUNING, save_steps=IN_FINE_TUNING)
        if one is config:
            (folder_of(True) / f"checkpoint-{IN_FINE_TUNING}").rename(elsewhere)
    with pytest.raises(ValueError, match="to resume from a checkpoint without the average"):
        run(train, "callback", config, resume=str(elsewhere))


@pytest.mark.parametrize("change", ["damaged", "of another model"])
def test_a_state_that_is_no_use_to_the_callback_is_left_alone(train, change):
    config, folder = cut_short(train, "gradual", INSIDE_RAMP)
    whole = run(train, "callback", config)
    if change == "damaged":
        (folder / STATE_NAME).write_bytes(b"cut short")
    else:
        state = load_state(folder)
        state.masks = {name: mask[:-1] for name, mask in state.masks.items()}
        save_state(state, folder)
    assert_same(whole, run(train, "callback", config, resume=True))


def test_the_callback_leaves_the_state_of_another_run_alone(train, tmp_path):
    """It may lie under the same name in output_dir, while the weights come from elsewhere."""
    config, folder = cut_short(train, PruningConfig.method, INSIDE_RAMP)
    elsewhere = folder.rename(tmp_path / "checkpoint-of-the-run")
    cut_short(train, "gradual", INSIDE_RAMP)
    (elsewhere / STATE_NAME).unlink()
    with pytest.raises(ValueError, match="also remembers values of pruned weights"):
        run(train, "callback", config, resume=str(elsewhere))


@pytest.mark.parametrize("cls", [Trainer, PruningTrainer])
def test_two_callbacks_resume_beside_each_other(train, cls):
    """Each has its files, also where the first one is that of a `PruningTrainer`."""

    def go(resume=None):
        wanted = {"query": 0.8, "value": 0.5}
        configs = [PruningConfig(sparsity=s, targets=[name]) for name, s in wanted.items()]
        callbacks = [PruningCallback(config) for config in configs]
        args = {"output_dir": str(folder_of(True)), "save_strategy": "steps"}
        args["save_steps"] = INSIDE_RAMP
        trainer = train(cls, args=args, callbacks=callbacks, resume=resume)
        return trainer, [callback.pruner for callback in callbacks]

    whole, pruners = go()
    resumed, others = go(resume=str(folder_of(True) / f"checkpoint-{INSIDE_RAMP}"))
    assert_same(whole, resumed)
    for one, other in zip(pruners, others, strict=True):
        assert all(torch.equal(mask, other.masks[name]) for name, mask in one.masks.items())


def test_the_callback_refuses_a_checkpoint_whose_zeros_are_not_the_schedules(train):
    config = PruningConfig("cyclical", sparsity=0.8, num_cycles=2, lr_restarts=False)
    with pytest.raises(ConnectionAbortedError):
        run(train, "callback", config, interrupt=IN_FINE_TUNING, save_steps=19)
    forget_state(IN_FINE_TUNING)
    other = PruningConfig("cyclical", sparsity=0.7, num_cycles=2, lr_restarts=False)
    with pytest.raises(ValueError, match=r"query\.weight' must hold 179 zeros .* got 205"):
        run(train, "callback", other, resume=True, save_steps=19)


def test_a_checkpoint_of_the_callback_resumes_in_pruning_trainer(train):
    config = PruningConfig("cyclical", sparsity=0.8, num_cycles=2, lr_restarts=False)
    whole = run(train, "callback", config)
    with pytest.raises(ConnectionAbortedError):
        run(train, "callback", config, interrupt=INSIDE_RAMP, save_steps=13)
    forget_state(INSIDE_RAMP)
    assert_same(whole, run(train, "trainer", config, resume=True, save_steps=13))


def test_other_settings_warn_with_the_differences(train):
    config = PruningConfig("cyclical", sparsity=0.8, num_cycles=2)
    with pytest.raises(ConnectionAbortedError):
        run(train, "trainer", config, interrupt=INSIDE_RAMP, save_steps=13)
    other = PruningConfig("cyclical", sparsity=0.6, num_cycles=2)
    with pytest.warns(UserWarning, match=r"other settings.*sparsity 0\.8 -> 0\.6"):
        trainer = run(train, "trainer", other, resume=True, save_steps=13)
    assert trainer.sparsity_report().is_at_target


def test_a_method_that_changed_meanwhile_warns_with_the_differences(train, monkeypatch):
    """As if a newer version of the library resumed the run, in which a method has other cycles."""
    config = PruningConfig("rising", sparsity=0.8)
    with pytest.raises(ConnectionAbortedError):
        run(train, "trainer", config, interrupt=INSIDE_RAMP, save_steps=13)
    rising = METHODS["rising"]
    newer = replace(rising, settings={**rising.settings, "num_cycles": 5})
    monkeypatch.setitem(METHODS, "rising", newer)
    with pytest.warns(UserWarning, match=r"with other settings.*: num_cycles 2 -> 5\."):
        trainer = run(train, "trainer", config, resume=True, save_steps=13)
    assert trainer.sparsity_report().is_at_target
    assert not trainer.model_card().record.is_plan_kept


@pytest.mark.parametrize(
    ("config", "change", "words"),
    [
        (PruningConfig(sparsity=0.9), {"interval_steps": 8}, "interval_steps 8 -> 6"),
        (PruningConfig(sparsity=0.9), {"reset_ratio": 0.5}, "reset_ratio 0.5 -> 0.95"),
        (PruningConfig(sparsity=0.9), {"scope": "layer"}, "scope 'layer' -> 'global'"),
        (PruningConfig(sparsity=0.9), {"of an older version": 1}, None),
        (PruningConfig(sparsity=0.9), {}, None),
        (PruningConfig(pattern="2:4"), {}, None),
        (PruningConfig(sparsity=0.9, layer_sparsities=["0=0.5"]), {}, None),
        (PruningConfig(method="hold"), {}, None),
    ],
)
def test_what_is_in_force_is_compared_with_what_was(config, change, words):
    """Only that: a choice which the version that saved the run did not know is no change."""
    schedule = config.build_schedule(1500)
    known = config.choices(schedule)
    plan = {k: v for k, v in known.items() if k != "protect_ratio"} | change
    state = PruningState(8, 1500, config_to_dict(config), plan, masks={})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        is_other = warn_of_changes(state, config, schedule)
    assert is_other == (words is not None)
    assert [str(w.message).rpartition(": ")[2] for w in caught] == ([f"{words}."] if words else [])
    assert ("scope" in known) == (config.pattern == "unstructured" and is_free(config))


def is_free(config):
    return config.layer_sparsities is None and config.method != "hold"


def test_a_setting_of_the_method_may_be_given_as_an_option_too(train):
    config = PruningConfig("rising", sparsity=0.8)
    whole = run(train, "trainer", config)
    with pytest.raises(ConnectionAbortedError):
        run(train, "trainer", config, interrupt=INSIDE_RAMP, save_steps=13)
    same = PruningConfig("rising", sparsity=0.8, num_cycles=2)
    resumed = run(train, "trainer", same, resume=True, save_steps=13)
    assert_same(whole, resumed)
    assert resumed.model_card().record.is_plan_kept


def test_options_that_choose_no_masks_may_change_and_masks_that_are_fixed_stay(train):
    """Those of one-shot pruning are of the first step: nothing later may rank the weights again."""
    config = PruningConfig("one_shot", sparsity=0.8)
    whole = run(train, "trainer", config)
    with pytest.raises(ConnectionAbortedError):
        run(train, "trainer", config, interrupt=INSIDE_RAMP, save_steps=13)
    other = PruningConfig("one_shot", sparsity=0.8, eval_cycle_ends=True, save_cycle_ends=True)
    with pytest.warns(UserWarning, match="other settings.*eval_cycle_ends False -> True"):
        resumed = run(train, "trainer", other, resume=True, save_steps=13)
    assert_same(whole, resumed)
    assert resumed.model_card().record.is_plan_kept


def test_a_tuple_in_the_place_of_a_list_is_no_other_setting(train):
    """The checkpoint has a list, since JSON knows no tuples."""
    config = PruningConfig("one_shot", sparsity=0.8, targets=("query", "key"))
    whole = run(train, "trainer", config)
    with pytest.raises(ConnectionAbortedError):
        run(train, "trainer", config, interrupt=INSIDE_RAMP, save_steps=13)
    again = PruningConfig("one_shot", sparsity=0.8, targets=("query", "key"))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The pruning run is resumed")
        assert_same(whole, run(train, "trainer", again, resume=True, save_steps=13))


@pytest.mark.parametrize("config", [None, PruningConfig("pgd", sparsity=0.8)])
def test_a_run_that_is_resumed_at_its_last_step_takes_no_other(train, config):
    """The checkpoint of step 40 lies inside the third epoch of 16 steps."""
    args = {"save_strategy": "steps", "save_steps": 40, "lr_scheduler_type": "constant"}
    whole = train(PruningTrainer, args=args, pruning_config=config)
    resumed = train(PruningTrainer, args=args, pruning_config=config, resume=True)
    assert resumed.state.global_step == 40
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_masks_of_another_model_are_refused(train, tiny_bert):
    config = PruningConfig("cyclical", sparsity=0.8, num_cycles=2)
    with pytest.raises(ConnectionAbortedError):
        run(train, "trainer", config, interrupt=INSIDE_RAMP, save_steps=13)
    other = PruningConfig("cyclical", sparsity=0.8, num_cycles=2, ignore=["query"])
    with pytest.raises(ValueError, match=r"masks are not those of the model's targets.*query"):
        run(train, "trainer", other, resume=True, save_steps=13)


def test_the_state_is_on_disk_before_the_trainers_own(train, monkeypatch):
    """So a checkpoint with a trainer_state.json is complete."""
    config = PruningConfig("cyclical", sparsity=0.8, num_cycles=2)
    with pytest.raises(ConnectionAbortedError):
        run(train, "trainer", config, interrupt=INSIDE_RAMP, save_steps=13)
    folder = folder_of(True) / f"checkpoint-{INSIDE_RAMP}"
    times = [(folder / n).stat().st_mtime_ns for n in (STATE_NAME, "trainer_state.json")]
    assert times == sorted(times)
