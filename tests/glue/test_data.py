from pathlib import Path

import pytest

pytest.importorskip("datasets", reason="the extra glue is not installed")

from datasets import ClassLabel, Dataset

from hf_cyclprune.glue.data import label_names, load_task, tokenize
from hf_cyclprune.glue.tasks import TASKS


def write_task(folder: Path, name: str, splits, columns=None, labels=None, texts=None):
    """A few rows of a task as parquet."""
    task = TASKS[name]
    for split in splits:
        rows = {c: texts or [f"{c} of row {i}" for i in range(4)] for c in columns or task.columns}
        default = [0.5, 1.0, 2.5, 5.0] if task.is_regression else [0, 1, 1, 0]
        path = folder / name / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict({**rows, "label": labels or default}).to_parquet(path)


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
    data = Dataset.from_dict({"sentence": ["a bb", "a bb ccc dddd"], "label": [1, 0]})
    encoded = tokenize(TASKS["sst2"], data, tokenizer, max_length=3)
    assert encoded["input_ids"][:] == [[1, 2], [1, 2, 3]]
    assert encoded["labels"][:] == [1, 0]
    assert set(encoded.column_names) == {"input_ids", "labels"}


def test_unknown_labels_are_left_out():
    data = Dataset.from_dict({"sentence": ["a bb"], "label": [-1]})
    assert tokenize(TASKS["sst2"], data, tokenizer, max_length=3).column_names == ["input_ids"]
    encoded = tokenize(TASKS["sst2"], data.remove_columns("label"), tokenizer, max_length=3)
    assert encoded.column_names == ["input_ids"]


def test_labels_follow_the_order_of_the_model():
    columns = {"premise": ["a"] * 3, "hypothesis": ["b"] * 3, "label": [0, 1, 2]}
    encoded = tokenize(TASKS["mnli"], Dataset.from_dict(columns), tokenizer, 8, [1, 2, 0])
    assert encoded["labels"][:] == [1, 2, 0]


@pytest.mark.parametrize(
    ("name", "labels", "rule"),
    [
        ("sst2", [0, 1, 2, 0], r"the integers 0 to 1 \(negative, positive\); got 0, 1, 2"),
        ("sst2", [0, 1, -1, 0], "the integers 0 to 1"),
        ("mnli", ["a", "b", "a", "b"], "the integers 0 to 2"),
        ("stsb", [0.0, float("nan"), 1.0, 2.0], "finite numbers"),
    ],
)
def test_labels_that_are_not_the_tasks_are_refused(name, labels, rule, tmp_path):
    splits = ["train", *TASKS[name].validation_splits]
    write_task(tmp_path, name, splits, labels=labels)
    with pytest.raises(ValueError, match=f"'label' of {name}/train must hold {rule}"):
        load_task(TASKS[name], str(tmp_path), str(tmp_path / "cache"))


def test_texts_must_be_strings(tmp_path):
    write_task(tmp_path, "sst2", ["train", "validation"], texts=[1, 2, 3, 4])
    with pytest.raises(ValueError, match="'sentence' of sst2/train must hold texts; got"):
        load_task(TASKS["sst2"], str(tmp_path), str(tmp_path / "cache"))


def test_the_data_may_name_their_labels_in_another_order():
    names = ["equivalent", "not_equivalent"]
    rows = {"sentence1": ["a"], "sentence2": ["b"], "label": [0]}
    data = Dataset.from_dict(rows).cast_column("label", ClassLabel(names=names))
    assert tuple(label_names(TASKS["mrpc"], data)) == ("equivalent", "not_equivalent")
    assert tuple(label_names(TASKS["mrpc"], Dataset.from_dict(rows))) == TASKS["mrpc"].labels
    other = Dataset.from_dict(rows).cast_column("label", ClassLabel(names=["no", "yes"]))
    assert tuple(label_names(TASKS["mrpc"], other)) == TASKS["mrpc"].labels


def test_no_network_is_one_sentence_with_the_way_out(tmp_path):
    with pytest.raises(ConnectionError, match=r"the Hub must be reachable .*--dataset_dir"):
        load_task(TASKS["sst2"], cache_dir=str(tmp_path))
