"""A checkpoint of another engine: what is taken from it, and what begins anew."""

import pytest
import torch
from transformers import trainer as trainer_module

from hf_cyclprune import PruningConfig, PruningTrainer
from hf_cyclprune.training.across import _not_loading, engine_of, written_by

CONFIG = PruningConfig("cyclical", sparsity=0.8, num_cycles=4, eval_cycle_ends=True)
ARGS = {
    "max_steps": 8,
    "save_strategy": "steps",
    "save_steps": 100,
    "eval_strategy": "steps",
    "eval_steps": 100,
    "load_best_model_at_end": True,
    "metric_for_best_model": "rank",
    "greater_is_better": False,
}


def metrics(values):
    """Metrics of the evaluations to come, one after the other."""
    return lambda _: {"rank": next(values)}


def test_the_best_model_is_chosen_anew(train, tmp_path):
    """Its folder is of the engine before, which this one may not be able to load."""
    train(PruningTrainer, args=ARGS, pruning_config=CONFIG, compute_metrics=metrics(iter([1] * 4)))
    checkpoint = tmp_path / "out" / "checkpoint-4"
    (checkpoint / "pytorch_model_fsdp.bin").touch()
    assert written_by(checkpoint) == ("FSDP",)
    with pytest.warns(UserWarning, match="written by another engine .*best model begin anew"):
        trainer = train(
            PruningTrainer,
            args=ARGS,
            pruning_config=CONFIG,
            compute_metrics=metrics(iter([8, 9])),
            resume=str(checkpoint),
        )
    assert engine_of(trainer) == ("one model a process",)
    assert trainer.state.best_global_step == 6
    assert trainer.pruner.is_at_target
    for name, mask in trainer.pruner.masks.items():
        assert torch.equal(trainer.model.get_parameter(name) != 0, mask), name


def test_deepspeed_loads_everything_but_the_other_engines_checkpoint(train, tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(
        trainer_module, "deepspeed_load_checkpoint", lambda engine, path: loaded.append(path)
    )
    trainer = train(PruningTrainer, args={"max_steps": 1}, pruning_config=None)
    with _not_loading(trainer, tmp_path / "checkpoint-4"):
        for step in (4, 8):
            trainer_module.deepspeed_load_checkpoint(None, str(tmp_path / f"checkpoint-{step}"))
    assert loaded == [str(tmp_path / "checkpoint-8")]
