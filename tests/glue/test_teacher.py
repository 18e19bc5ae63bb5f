"""`--teacher self`: a dense run of the same model first, whose result teaches the pruned one."""

import json

import pytest
import torch
from safetensors.torch import load_file

from hf_cyclprune.cli import main
from hf_cyclprune.glue.flags import parse_flags
from hf_cyclprune.glue.teacher import FOLDER, prepare_teacher
from hf_cyclprune.training.trainer import PruningTrainer

PRUNED = ("--sparsity", 0.8, "--num_cycles", 2)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "out"


def assert_same(one, other):
    first, second = (load_file(path / "model.safetensors") for path in (one, other))
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name


def test_the_teacher_is_the_dense_run_and_the_student_learns_from_it(flags, folder, tmp_path):
    assert main(["glue", *flags("sst2", *PRUNED, "--teacher", "self")]) == 0
    dense, alone, named = (str(tmp_path / name) for name in ("dense", "alone", "named"))
    assert main(["glue", *flags("sst2", "--output_dir", dense)]) == 0
    assert main(["glue", *flags("sst2", *PRUNED, "--output_dir", alone)]) == 0
    flag = ("--teacher", dense, "--output_dir", named)
    assert main(["glue", *flags("sst2", *PRUNED, *flag)]) == 0
    assert_same(folder / FOLDER, tmp_path / "dense")
    assert_same(folder, tmp_path / "named")
    with pytest.raises(AssertionError, match=r"weight|bias|gamma|beta"):
        assert_same(folder, tmp_path / "alone")
    results = [json.loads((f / "all_results.json").read_text()) for f in (folder, folder / FOLDER)]
    assert [values["sparsity"] for values in results] == [pytest.approx(0.8, abs=1e-3), 0.0]
    assert not (folder / FOLDER / "pruning_config.json").exists()
    record = json.loads((folder / "pruning_run.json").read_text())
    assert record["hyperparameters"]["teacher"] == "BertForSequenceClassification"
    assert str(tmp_path) not in (folder / "README.md").read_text()


def test_the_teachers_loss_is_scaled_as_the_students(flags, folder):
    argv = flags("sst2", *PRUNED, "--teacher", "self", "--fix_loss_scaling", "False")
    glue, args = parse_flags([str(flag) for flag in argv])
    asked = []
    prepare_teacher(glue, args, lambda _, dense: asked.append(dense))
    assert [(dense.sparsity, dense.fix_loss_scaling) for dense in asked] == [(None, False)]


def test_a_finished_teacher_is_taken_as_it_is(flags, folder, monkeypatch):
    real, trained = PruningTrainer.train, []

    def train(self, *args, **kwargs):
        trained.append(self.args.output_dir)
        if self.pruning_callback is not None and self.args.sparsity is not None and fails:
            raise ValueError("the power went out")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(PruningTrainer, "train", train)
    fails = True
    argv = ["glue", *flags("sst2", *PRUNED, "--teacher", "self")]
    assert main(argv) != 0
    assert trained == [str(folder / FOLDER), str(folder)]
    fails = False
    assert main(argv) == 0
    assert trained == [str(folder / FOLDER), str(folder), str(folder)]


def test_an_interrupted_teacher_is_resumed(flags, folder, tmp_path, monkeypatch):
    argv = ["glue", *flags("sst2", *PRUNED, "--teacher", "self")]
    real = PruningTrainer._save_checkpoint

    def save(self, *args, **kwargs):
        real(self, *args, **kwargs)
        raise ValueError("the power went out")

    with monkeypatch.context() as patched:
        patched.setattr(PruningTrainer, "_save_checkpoint", save)
        assert main(argv) != 0
    assert (folder / FOLDER / "checkpoint-6").is_dir()
    assert main(argv) == 0
    whole = tmp_path / "whole"
    assert main(["glue", *flags("sst2", "--output_dir", whole)]) == 0
    assert_same(folder / FOLDER, whole)


def test_a_teacher_of_another_run_is_refused(flags, folder, capsys):
    (folder / FOLDER).mkdir(parents=True)
    (folder / FOLDER / "all_results.json").write_text('{"eval_accuracy": 0.5}')
    (folder / FOLDER / "glue_config.json").write_text('{"task_name": "mrpc"}')
    assert main(["glue", *flags("sst2", *PRUNED, "--teacher", "self")]) != 0
    error = capsys.readouterr().err
    assert "task_name must be 'mrpc' to resume the run in" in error
    assert FOLDER in error


def test_without_training_there_is_no_teacher(flags, folder):
    assert main(["glue", *flags("sst2", "--do_eval", "--teacher", "self")]) == 0
    assert not (folder / FOLDER).exists()
