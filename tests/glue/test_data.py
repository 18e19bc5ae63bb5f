from pathlib import Path

import pytest

pytest.importorskip("datasets", reason="the extra glue is not installed")

from datasets import Dataset

from hf_cyclprune.glue.data import load_task, tokenize
from hf_cyclprune.glue.tasks import TASKS


def write_task(folder: Path, name: str, splits, columns=None):
    """A few rows of a task as parquet."""
    task = TASKS[name]
    for split in splits:
        rows = {c: [f"{c} of row {i}" for i in range(4)] for c in columns or task.columns}
        labels = [0.5, 1.0, 2.5, 5.0] if task.is_regression else [0, 1, 1, 0]
        path = folder / name / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict({**rows, "label": labels}).to_parquet(path)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_loads_from_a_folder(name, tmp_path):
    splits = {"train", *TASKS[name].validation_splits}
    write_task(tmp_path, name, splits)
    loaded = load_task(TASKS[name], str(tmp_path), str(tmp_path / "cache"))
    assert set(loaded) == splits
    assert len(loaded["train"]) == 4


def test_mnli_may_have_one_validation_split(tmp_path):
    write_task(tmp_path, "mnli", ["train", "validation"])
    loaded = load_task(TASKS["mnli"], str(tmp_path), str(tmp_path / "cache"))
    assert set(loaded) == {"train", "validation"}


def test_a_missing_file_is_named(tmp_path):
    write_task(tmp_path, "sst2", ["train"])
    with pytest.raises(ValueError, match=r"dataset_dir must hold sst2/validation\.parquet"):
        load_task(TASKS["sst2"], str(tmp_path))
    with pytest.raises(ValueError, match=r"dataset_dir must hold rte/train\.parquet"):
        load_task(TASKS["rte"], str(tmp_path))


def test_wrong_columns_are_named(tmp_path):
    write_task(tmp_path, "mrpc", ["train", "validation"], columns=["text", "sentence2"])
    with pytest.raises(ValueError, match=r"must have the columns sentence1, sentence2, label; got"):
        load_task(TASKS["mrpc"], str(tmp_path), str(tmp_path / "cache"))


def tokenizer(*texts, truncation, max_length):
    """One token a word, pairs joined."""
    pairs = zip(*texts, strict=True)
    return {"input_ids": [[len(w) for t in p for w in t.split()][:max_length] for p in pairs]}


def test_texts_become_ids_without_padding_and_the_label_stays():
    data = Dataset.from_dict({"sentence": ["a bb", "a bb ccc dddd"], "label": [1, -1]})
    encoded = tokenize(TASKS["sst2"], data, tokenizer, max_length=3)
    assert encoded["input_ids"][:] == [[1, 2], [1, 2, 3]]
    assert encoded["labels"][:] == [1, -1]
    assert set(encoded.column_names) == {"input_ids", "labels"}


def test_labels_follow_the_order_of_the_model():
    columns = {"premise": ["a"] * 4, "hypothesis": ["b"] * 4, "label": [0, 1, 2, -1]}
    ids = {"contradiction": 0, "entailment": 1, "neutral": 2}
    encoded = tokenize(TASKS["mnli"], Dataset.from_dict(columns), tokenizer, 8, ids)
    assert encoded["labels"][:] == [1, 2, 0, -1]
