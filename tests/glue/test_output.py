import json

import pytest
import torch

pytest.importorskip("datasets", reason="the extra glue is not installed")

from hf_cyclprune.glue.arguments import GlueArguments
from hf_cyclprune.glue.output import (
    check_output_dir,
    find_checkpoint,
    save_identity,
    write_predictions,
)
from hf_cyclprune.training.arguments import PruningArguments

GLUE = GlueArguments("sst2", "somewhere")


@pytest.fixture
def args(tmp_path):
    """Build training arguments with an output_dir and resume_from_checkpoint."""

    def build(resume=None, folder=tmp_path, **options):
        options = {"use_cpu": True, "report_to": [], **options}
        return PruningArguments(str(folder), resume_from_checkpoint=resume, **options)

    return build


def check(args, glue=GLUE):
    check_output_dir(args, glue, find_checkpoint(args))


def checkpoint(folder, step, text='{"global_step": 3}'):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({}, path / name)
    if text is not None:
        (path / "trainer_state.json").write_text(text)
    return str(path)


@pytest.mark.parametrize("resume", [None, "True"])
def test_a_new_folder_and_one_without_files_are_free(resume, args, tmp_path):
    check(args(resume, tmp_path / "new"))
    (tmp_path / "runs").mkdir()
    check(args(resume))


def test_a_folder_that_cannot_be_made_or_written_to_is_refused(args, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    rule = "^output_dir must be a folder that can be written to; got '{}': {}. Name another one.$"
    for place, reason in ((tmp_path / "file" / "x" / "y", "Not a directory"),):
        with pytest.raises(ValueError, match=rule.format(place, reason)):
            check(args(None, place))

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryDirectory", refuse)
    with pytest.raises(ValueError, match=rule.format(tmp_path / "new", "Permission denied")):
        check(args(None, tmp_path / "new"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_run_that_failed_at_once_leaves_its_folder_free(args, tmp_path):
    save_identity(args(), GLUE)
    check(args())
    check(args("True"), GlueArguments("rte", "somewhere"))


def test_a_folder_with_files_or_checkpoints_is_taken(args, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("mine")
    checkpoint(tmp_path / "b", 10)
    for name in "ab":
        with pytest.raises(ValueError, match="output_dir must be new or empty; got"):
            check(args(folder=tmp_path / name))
        with pytest.raises(
            FileNotFoundError, match="Only runs of hf-cyclprune glue can be resumed"
        ):
            check(args("True", tmp_path / name))


def test_a_file_is_no_folder(args, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="output_dir must be a folder that"):
        check(args(folder=tmp_path / "file"))


@pytest.mark.parametrize(
    ("task", "options", "name"),
    [
        ("rte", {}, "task_name must be 'sst2'"),
        ("sst2", {"seed": 7}, "seed must be 42"),
        ("sst2", {"sparsity": 0.5}, "is_pruning must be False"),
    ],
)
def test_only_the_same_run_goes_on(task, options, name, args, tmp_path):
    save_identity(args(), GLUE)
    path = checkpoint(tmp_path, 5)
    check(args("True"))
    check(args(path, tmp_path / "elsewhere"))
    glue = GlueArguments(task, "somewhere")
    with pytest.raises(ValueError, match=f"{name} to resume the run"):
        check(args("True", **options), glue)
    with pytest.raises(ValueError, match=f"{name} to resume the run"):
        check(args(path, tmp_path / "elsewhere", **options), glue)


def test_a_finished_run_without_checkpoints_is_not_run_again(args, tmp_path):
    save_identity(args(), GLUE)
    (tmp_path / "all_results.json").write_text("{}")
    with pytest.raises(ValueError, match="output_dir must hold a checkpoint to resume"):
        check(args("True"))


def test_a_broken_identity_is_refused(args, tmp_path):
    checkpoint(tmp_path, 5)
    (tmp_path / "glue_config.json").write_text("[]")
    with pytest.raises(
        ValueError, match=r"glue_config\.json in '.*' cannot be read: .*name another folder"
    ):
        check(args("True"))


def test_the_identity_holds_no_path_of_data(args, tmp_path):
    save_identity(args(), GlueArguments("sst2", "m", dataset_dir="/secret", cache_dir="/x"))
    assert "/secret" not in (tmp_path / "glue_config.json").read_text()
    assert json.loads((tmp_path / "glue_config.json").read_text())["task_name"] == "sst2"


def test_the_newest_whole_checkpoint_is_found(args, tmp_path):
    checkpoint(tmp_path, 5)
    newest = checkpoint(tmp_path, 20)
    checkpoint(tmp_path, 100, text=None)  # killed before the last file
    checkpoint(tmp_path, 90, text='{"global_st')  # killed in the middle of it
    (tmp_path / "checkpoint-best").mkdir()
    with pytest.warns(UserWarning, match=r"checkpoint-(100|90) is not resumed from: "):
        assert find_checkpoint(args("True")) == newest


def test_a_run_without_a_checkpoint_starts_from_the_beginning(args, tmp_path):
    assert find_checkpoint(args("True")) is None
    assert find_checkpoint(args("True", tmp_path / "new")) is None
    checkpoint(tmp_path, 5)
    for nothing in (None, "False", ""):
        assert find_checkpoint(args(nothing)) is None


def test_a_named_checkpoint_must_be_one(args, tmp_path):
    path = checkpoint(tmp_path, 5)
    assert find_checkpoint(args(path, "elsewhere")) == path
    with pytest.raises(ValueError, match="resume_from_checkpoint must be True or a checkpoint's"):
        find_checkpoint(args(str(tmp_path)))


def test_predictions_are_a_table(tmp_path):
    write_predictions(tmp_path / "file.txt", ["positive", "negative"])
    text = (tmp_path / "file.txt").read_text()
    assert text == "index\tprediction\n0\tpositive\n1\tnegative\n"
