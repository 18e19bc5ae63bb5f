"""Training on from a model that is sparse already."""

import logging

import pytest
import torch
from transformers import Trainer

from hf_cyclprune import (
    PruningArguments,
    PruningCallback,
    PruningConfig,
    PruningTrainer,
    SparsityReport,
    find_targets,
    prune_,
)

HOLD = PruningConfig(method="hold")


@pytest.fixture
def sparse(tiny_bert):
    """Builds the same pruned model at every call."""

    def build(**config):
        model = tiny_bert()
        prune_(model, PruningConfig(**(config or {"sparsity": 0.8})))
        return model

    return build


def zeros(model):
    return {name: weight == 0 for name, weight in find_targets(model).items()}


@pytest.mark.parametrize("config", [{"sparsity": 0.8}, {"pattern": "2:4"}])
@pytest.mark.parametrize("kind", ["trainer", "callback"])
def test_hold_keeps_the_zeros_where_they_are_and_trains_the_rest(kind, config, sparse, train):
    before, start = zeros(sparse(**config)), sparse(**config)
    if kind == "trainer":
        trainer = train(PruningTrainer, model=sparse(**config), pruning_config=HOLD)
        assert trainer.sparsity_report().is_at_target
    else:
        trainer = train(Trainer, model=sparse(**config), callbacks=[PruningCallback(HOLD)])
    after = zeros(trainer.model)
    for name, weight in find_targets(trainer.model).items():
        assert torch.equal(after[name], before[name]), name
        assert not torch.equal(weight, find_targets(start)[name])
        assert not torch.signbit(weight[before[name]]).any()


def test_zeros_that_are_not_spread_evenly_are_where_they_should_be(sparse, train, recwarn):
    model = sparse(sparsity=0.8, scope="global")
    trainer = train(PruningTrainer, model=model, pruning_config=HOLD)
    assert (
        len({weight.count_nonzero() / weight.numel() for weight in find_targets(model).values()})
        > 2
    )
    assert trainer.pruner.is_at_target
    assert not [w for w in recwarn if "Training ended" in str(w.message)]


def test_hold_is_a_flag(sparse, train):
    args = {"method": "hold"}
    trainer = train(PruningTrainer, model=sparse(), args=args, args_cls=PruningArguments)
    assert SparsityReport.measure(trainer.model).sparsity == pytest.approx(0.8, abs=1e-3)


def test_hold_has_one_learning_rate_schedule(sparse, train):
    trainer = train(PruningTrainer, model=sparse(), pruning_config=HOLD)
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("kind", ["trainer", "callback"])
def test_hold_resumes_bit_for_bit(kind, sparse, train, tmp_path):
    def run(resume=None):
        args = {"save_strategy": "steps", "save_steps": 10}
        if kind == "trainer":
            options = {"cls": PruningTrainer, "pruning_config": HOLD}
        else:
            options = {"cls": Trainer, "callbacks": [PruningCallback(HOLD)]}
        return train(args=args, model=sparse(), resume=resume, **options).model.state_dict()

    whole = {name: weight.clone() for name, weight in run().items()}
    resumed = run(resume=str(tmp_path / "out" / "checkpoint-20"))
    for name, weight in whole.items():
        assert torch.equal(resumed[name], weight), name


def test_hold_remembers_its_best_model_over_a_resume(sparse, train, tmp_path):
    """Every evaluation is worse than the one before."""
    values = iter(range(100))
    args = {
        **dict.fromkeys(("eval_strategy", "save_strategy"), "steps"),
        **dict.fromkeys(("eval_steps", "save_steps"), 10),
        "load_best_model_at_end": True,
        "metric_for_best_model": "value",
        "greater_is_better": False,
    }
    options = {
        "args": args,
        "pruning_config": HOLD,
        "compute_metrics": lambda prediction: {"value": next(values)},
    }
    train(PruningTrainer, model=sparse(), **options)
    checkpoint = str(tmp_path / "out" / "checkpoint-20")
    resumed = train(PruningTrainer, model=sparse(), resume=checkpoint, **options)
    assert resumed.state.best_global_step == 10


def test_a_dense_model_has_nothing_to_hold(tiny_bert, train):
    with pytest.raises(ValueError, match="no zeros to keep"):
        train(PruningTrainer, model=tiny_bert(), pruning_config=HOLD)


@pytest.mark.parametrize("option", [{"sparsity": 0.5}, {"pattern": "2:4"}, {"num_cycles": 2}])
def test_what_would_move_the_zeros_is_refused(option):
    (name,) = option
    with pytest.raises(ValueError, match=f"{name} must be left out with method 'hold'"):
        PruningConfig(method="hold", **option)


def test_one_shot_pruning_does_not_hold(sparse):
    with pytest.raises(ValueError, match=r"method must prune, .* got 'hold'"):
        prune_(sparse(), HOLD)


def test_a_sparse_model_can_be_cycled_again_and_is_recognised(sparse, train, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("hf_cyclprune.training.prerequisites"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    config = PruningConfig(sparsity=0.9, num_cycles=2)
    trainer = train(PruningTrainer, model=sparse(), pruning_config=config)
    assert trainer.sparsity_report().is_at_target
    assert "already has 80.08% zeros" in caplog.text
