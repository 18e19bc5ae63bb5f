"""A run that was stopped at any moment resumes from the newest checkpoint that is whole."""

import shutil

import pytest
import torch

from hf_cyclprune import PruningConfig, PruningTrainer
from hf_cyclprune.files import STATE_NAME
from hf_cyclprune.training.damage import find_damage, newest_checkpoint

CONFIG = PruningConfig(sparsity=0.8, num_cycles=2)
ARGS = {"save_strategy": "steps", "save_steps": 10}


@pytest.fixture
def saved(train, tmp_path):
    """A run of 40 steps with checkpoints after 10, 20, 30 and 40."""
    trainer = train(PruningTrainer, args=ARGS, pruning_config=CONFIG)
    return tmp_path / "out", {k: v.clone() for k, v in trainer.model.state_dict().items()}


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def garble_state(folder):
    (folder / STATE_NAME).write_bytes(b"\0" * 64)


DAMAGES = {
    "it has no trainer_state.json": lambda f: (f / "trainer_state.json").unlink(),
    "its trainer_state.json cannot be read": lambda f: cut(f / "trainer_state.json"),
    "its model.safetensors is cut short": lambda f: cut(f / "model.safetensors"),
    "cut short or damaged": lambda f: cut(f / STATE_NAME),
    "damaged": garble_state,
    "its optimizer.pt is cut short": lambda f: cut(f / "optimizer.pt"),
    "its rng_state.pth is cut short": lambda f: cut(f / "rng_state.pth"),
}


@pytest.mark.parametrize("problem", DAMAGES)
def test_true_skips_a_damaged_checkpoint_with_a_warning(problem, saved, train):
    folder, final = saved
    shutil.rmtree(folder / "checkpoint-40")
    DAMAGES[problem](folder / "checkpoint-30")
    with pytest.warns(UserWarning, match=f"checkpoint-30 is not resumed from: .*{problem}"):
        trainer = train(PruningTrainer, args=ARGS, pruning_config=CONFIG, resume=True)
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, final[name]), name
    assert find_damage(folder / "checkpoint-30") is None, "it was written again"


def test_a_missing_shard_is_a_damage(saved):
    folder = saved[0] / "checkpoint-40"
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "x.safetensors"}}')
    assert find_damage(folder) == "it has no x.safetensors"


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (["optimizer.bin"], "it has no pytorch_model_fsdp.bin"),
        (["pytorch_model_fsdp.bin"], "its pytorch_model_fsdp.bin is cut short"),
        (["optimizer_0/.metadata"], "it has no pytorch_model_fsdp_0/.metadata"),
        (["pytorch_model_fsdp_0/.metadata", "optimizer_0/x"], "it has no optimizer_0/.metadata"),
        (["global_step40/x.pt"], "it has no latest"),
        (["global_step40/x.pt", "latest"], "its global_step40/x.pt is cut short"),
        (["rng_state_1.pth"], "its rng_state_1.pth is cut short"),
    ],
)
def test_what_an_engine_writes_may_be_damaged(files, problem, saved):
    folder = saved[0] / "checkpoint-40"
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    if problem.startswith("it has no"):
        for path in folder.rglob("*.bin"):
            torch.save({}, path)
    assert find_damage(folder) == problem


def test_a_damaged_checkpoint_does_not_push_good_ones_out(saved, train):
    """With save_total_limit 1, the damaged one has the highest number when the next is saved."""
    folder, _ = saved
    DAMAGES["it has no trainer_state.json"](folder / "checkpoint-40")
    args = {**ARGS, "save_total_limit": 1, "max_steps": 35, "save_steps": 35}
    with pytest.warns(UserWarning, match="resume"):
        train(PruningTrainer, args=args, pruning_config=CONFIG, resume=True)
    assert newest_checkpoint(folder) == str(folder / "checkpoint-35")


def test_a_checkpoint_that_is_written_again_does_not_look_whole_meanwhile(
    saved, train, monkeypatch
):
    folder, _ = saved

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(PruningTrainer, "_save_rng_state", fail)
    resume = str(folder / "checkpoint-10")
    with pytest.raises(OSError, match="disk full"):
        train(PruningTrainer, args=ARGS, pruning_config=CONFIG, resume=resume)
    assert find_damage(folder / "checkpoint-20") == "it has no trainer_state.json"
    assert find_damage(folder / "checkpoint-30") is None


def test_only_what_a_kill_left_is_removed_and_only_beside_a_whole_one(saved):
    folder, _ = saved
    (folder / "checkpoint-30" / "optimizer.pt").unlink()  # as save_only_model leaves it
    (folder / "checkpoint-40" / "trainer_state.json").unlink()
    with pytest.warns(UserWarning, match="is not resumed from"):
        assert newest_checkpoint(folder, remove=True) == str(folder / "checkpoint-20")
    assert not (folder / "checkpoint-40").exists()
    assert (folder / "checkpoint-30" / "model.safetensors").exists()
    for step in (10, 20):
        (folder / f"checkpoint-{step}" / "trainer_state.json").unlink()
    with pytest.warns(UserWarning, match="is not resumed from"):
        assert newest_checkpoint(folder, remove=True) is None
    assert (folder / "checkpoint-20" / "model.safetensors").exists()


def test_without_a_whole_checkpoint_there_is_nothing_to_resume(train, tmp_path):
    (tmp_path / "out" / "checkpoint-5").mkdir(parents=True)
    with (
        pytest.warns(UserWarning, match="checkpoint-5"),
        pytest.raises(ValueError, match="heckpoi"),
    ):
        train(PruningTrainer, args=ARGS, pruning_config=CONFIG, resume=True)
