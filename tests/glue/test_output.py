import json

import pytest

pytest.importorskip("datasets", reason="the extra glue is not installed")

from hf_cyclprune.glue.arguments import GlueArguments
from hf_cyclprune.glue.output import (
    check_output_dir,
    find_checkpoint,
    save_identity,
    write_predictions,
)

GLUE = GlueArguments("sst2", "somewhere")


def checkpoint(folder, step, text='{"global_step": 3}'):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    if text is not None:
        (path / "trainer_state.json").write_text(text)
    return str(path)


@pytest.mark.parametrize("is_resumed", [False, True])
def test_a_new_folder_and_one_without_files_are_free(is_resumed, tmp_path):
    check_output_dir(tmp_path / "new", GLUE, is_resumed)
    (tmp_path / "runs").mkdir()
    check_output_dir(tmp_path, GLUE, is_resumed)


def test_a_folder_with_files_or_checkpoints_is_taken(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("mine")
    checkpoint(tmp_path / "b", 10)
    for name in "ab":
        with pytest.raises(ValueError, match="output_dir must be new or empty; got"):
            check_output_dir(tmp_path / name, GLUE, is_resumed=False)
        with pytest.raises(ValueError, match="must hold a run of hf-cyclprune glue to resume"):
            check_output_dir(tmp_path / name, GLUE, is_resumed=True)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="output_dir must be a folder; got"):
        check_output_dir(tmp_path / "file", GLUE, is_resumed=False)


def test_only_the_same_run_goes_on(tmp_path):
    save_identity(tmp_path, GLUE)
    check_output_dir(tmp_path, GLUE, is_resumed=True)
    with pytest.raises(ValueError, match=r"task_name must be 'sst2' to resume .*; got 'rte'"):
        check_output_dir(tmp_path, GlueArguments("rte", "somewhere"), is_resumed=True)
    with pytest.raises(ValueError, match="output_dir must be new or empty"):
        check_output_dir(tmp_path, GLUE, is_resumed=False)


def test_the_identity_tells_no_path_of_data(tmp_path):
    save_identity(
        tmp_path, GlueArguments("sst2", "somewhere", dataset_dir="/secret", cache_dir="/x")
    )
    assert "/secret" not in (tmp_path / "glue_config.json").read_text()
    assert json.loads((tmp_path / "glue_config.json").read_text())["task_name"] == "sst2"


def test_the_newest_complete_checkpoint_is_found(tmp_path):
    checkpoint(tmp_path, 5)
    newest = checkpoint(tmp_path, 20)
    checkpoint(tmp_path, 100, text=None)  # killed before the last file
    checkpoint(tmp_path, 90, text='{"global_st')  # killed in the middle of it
    assert find_checkpoint(tmp_path, "True") == newest
    assert find_checkpoint(tmp_path, True) == newest


def test_a_run_without_a_checkpoint_starts_from_the_beginning(tmp_path):
    assert find_checkpoint(tmp_path, "True") is None
    assert find_checkpoint(tmp_path / "new", "True") is None
    for nothing in (None, "False", ""):
        checkpoint(tmp_path / str(nothing), 5)
        assert find_checkpoint(tmp_path / str(nothing), nothing) is None


def test_a_named_checkpoint_must_be_one(tmp_path):
    path = checkpoint(tmp_path, 5)
    assert find_checkpoint("elsewhere", path) == path
    with pytest.raises(ValueError, match="resume_from_checkpoint must be True or a checkpoint's"):
        find_checkpoint(tmp_path, str(tmp_path))


def test_predictions_are_a_table(tmp_path):
    write_predictions(tmp_path / "file.txt", ["positive", "negative"])
    text = (tmp_path / "file.txt").read_text()
    assert text == "index\tprediction\n0\tpositive\n1\tnegative\n"
