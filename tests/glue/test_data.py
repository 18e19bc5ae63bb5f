from pathlib import Path

import pytest

pytest.importorskip("datasets", reason="the extra glue is not installed")

from datasets import ClassLabel, Dataset

from hf_cyclprune.glue.data import label_names, load_task, tokenize
from hf_cyclprune.glue.tasks import TASKS


def write_task(folder: Path, name: str, splits, columns=None, labels=None, texts=None):
    """Write a few rows of a task as parquet."""
    task = TASKS[name]
    for split in splits:
        rows = {c: texts or [f"{c} of row {i}" for i in range(4)] for c in columns or task.columns}
        default = [0.5, 1.0, 2.5, 5.0] if task.is_regression else [0, 1, 1, 0]
        path = folder / name / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict({**rows, "label": labels or default}).to_parquet(path)


def load(name, folder, wanted=("train", "validation")):
    return load_task(TASKS[name], wanted, str(folder), str(folder / "cache"))


@pytest.mark.parametrize("name", TASKS)
def test_every_task_loads_from_a_folder(name, tmp_path):
    splits = {"train", *TASKS[name].validation_splits}
    write_task(tmp_path, name, splits)
    loaded = load(name, tmp_path)
    assert set(loaded) == splits
    assert set(loaded["train"].column_names) == {*TASKS[name].columns, "label"}
    assert len(loaded["train"]) == 4


def test_only_what_is_wanted_must_be_there(tmp_path):
    write_task(tmp_path, "sst2", ["test"])
    loaded = load("sst2", tmp_path, ["test"])
    assert loaded["test"].column_names == ["sentence"]
    with pytest.raises(ValueError, match=r"dataset_dir must hold sst2/train\.parquet"):
        load("sst2", tmp_path)


def test_mnli_may_have_one_validation_split_or_both(tmp_path):
    write_task(tmp_path, "mnli", ["train", "validation"])
    assert set(load("mnli", tmp_path)) == {"train", "validation"}
    write_task(tmp_path, "mnli", ["validation_mismatched"])
    with pytest.raises(ValueError, match=r"must hold mnli/validation_matched\.parquet"):
        load("mnli", tmp_path)
    write_task(tmp_path, "mnli", ["validation_matched"])
    assert set(load("mnli", tmp_path)) == {
        "train",
        "validation_matched",
        "validation_mismatched",
    }


def test_a_missing_file_is_named(tmp_path):
    write_task(tmp_path, "sst2", ["train"])
    with pytest.raises(ValueError, match=r"dataset_dir must hold sst2/validation\.parquet"):
        load("sst2", tmp_path)
    with pytest.raises(ValueError, match=r"dataset_dir must hold rte/train\.parquet"):
        load("rte", tmp_path)


def test_wrong_columns_are_named(tmp_path):
    write_task(tmp_path, "mrpc", ["train", "validation"], columns=["text", "sentence2"])
    with pytest.raises(ValueError, match=r"must have the columns sentence1, sentence2, label; got"):
        load("mrpc", tmp_path)


def test_other_columns_may_differ_between_the_splits(tmp_path):
    write_task(tmp_path, "sst2", ["train"])
    write_task(tmp_path, "sst2", ["validation"], columns=["sentence", "note"])
    assert load("sst2", tmp_path)["validation"].column_names == ["sentence", "label"]


def test_a_folder_may_be_called_anything(tmp_path):
    folder = tmp_path / "a [b] *"
    write_task(folder, "sst2", ["train", "validation"])
    assert len(load("sst2", folder)["train"]) == 4


def test_an_empty_or_broken_file_is_named(tmp_path):
    write_task(tmp_path, "sst2", ["train", "validation"])
    data = Dataset.from_parquet(str(tmp_path / "sst2" / "train.parquet"))
    data.select([]).to_parquet(tmp_path / "sst2" / "train.parquet")
    rule = r"dataset_dir must hold sst2/train\.parquet as a parquet file with rows; got '.*': "
    with pytest.raises(ValueError, match=rule):
        load("sst2", tmp_path)
    (tmp_path / "sst2" / "train.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=rule + r".*[^.]\. Write the file again\.$"):
        load("sst2", tmp_path)


def test_damage_inside_of_a_file_is_named_by_its_cause(tmp_path):
    write_task(tmp_path, "sst2", ["train", "validation"])
    file = tmp_path / "sst2" / "train.parquet"
    content = bytearray(file.read_bytes())
    content[30:80] = b"\xff" * 50
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"must hold sst2/train\.parquet") as caught:
        load("sst2", tmp_path)
    assert "An error occurred" not in str(caught.value)


def tokenizer(*texts, truncation, max_length):
    """Make one token of every word, and join the texts of a pair."""
    pairs = zip(*texts, strict=True)
    return {"input_ids": [[len(w) for t in p for w in t.split()][:max_length] for p in pairs]}


def test_texts_become_ids_without_padding_and_the_label_stays():
    data = Dataset.from_dict({"sentence": ["a bb", "a bb ccc dddd"], "label": [1, 0]})
    encoded = tokenize(TASKS["sst2"], data, tokenizer, max_length=3)
    assert encoded["input_ids"][:] == [[1, 2], [1, 2, 3]]
    assert encoded["labels"][:] == [1, 0]
    assert set(encoded.column_names) == {"input_ids", "labels"}


def test_a_test_set_has_no_labels():
    data = Dataset.from_dict({"sentence": ["a bb"]})
    assert tokenize(TASKS["sst2"], data, tokenizer, max_length=3).column_names == ["input_ids"]


def test_labels_follow_the_order_of_the_model():
    columns = {"premise": ["a"] * 3, "hypothesis": ["b"] * 3, "label": [0, 1, 2]}
    encoded = tokenize(TASKS["mnli"], Dataset.from_dict(columns), tokenizer, 8, [1, 2, 0])
    assert encoded["labels"][:] == [1, 2, 0]


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("sst2", [0, 1, 2, 0], r"the integers 0 to 1 \(negative, positive\); got 2\."),
        ("sst2", [0, 1, -1, 0], r"the integers 0 to 1 .*; got -1\."),
        ("sst2", [0.0, 1.0, 0.0, 1.0], "the integers 0 to 1 .*float64"),
        ("sst2", [True, False, True, False], "the integers 0 to 1 .*bool"),
        ("sst2", [0, None, 1, 0], "rows without a label"),
        ("mnli", ["a", "b", "a", "b"], "the integers 0 to 2 .*string"),
        ("sst2", [[0], [1], [0], [1]], "the integers 0 to 1"),
        ("stsb", [0.0, float("nan"), 1.0, 2.0], r"numbers >= 0; got nan\."),
        ("stsb", [0.0, -1.0, 1.0, 2.0], r"numbers >= 0; got -1\.0\."),
    ],
)
def test_labels_that_are_not_the_tasks_are_refused(name, labels, message, tmp_path):
    write_task(tmp_path, name, ["train", *TASKS[name].validation_splits], labels=labels)
    with pytest.raises(ValueError, match=f"'label' of {name}/train must hold {message}|{message}"):
        load(name, tmp_path)


@pytest.mark.parametrize(
    ("texts", "got"), [([1, 2, 3, 4], "int64"), (["a", None, "b", "c"], "1 without a value")]
)
def test_texts_must_be_strings(texts, got, tmp_path):
    write_task(tmp_path, "sst2", ["train", "validation"], texts=texts)
    with pytest.raises(ValueError, match=f"'sentence' of sst2/train must hold texts; got .*{got}"):
        load("sst2", tmp_path)


def test_every_split_may_name_its_labels_in_its_own_order(tmp_path):
    write_task(tmp_path, "mrpc", ["train", "validation"])
    file = tmp_path / "mrpc" / "validation.parquet"
    names = ["EQUIVALENT", "NOT_EQUIVALENT"]
    data = Dataset.from_parquet(str(file)).cast_column("label", ClassLabel(names=names))
    data.to_parquet(file)
    loaded = load("mrpc", tmp_path)
    assert tuple(label_names(TASKS["mrpc"], loaded["train"])) == TASKS["mrpc"].labels
    own = tuple(label_names(TASKS["mrpc"], loaded["validation"]))
    assert own == ("equivalent", "not_equivalent")


def test_other_label_names_are_refused_unless_they_are_numbers():
    rows = {"sentence1": ["a"], "sentence2": ["b"], "label": [0]}
    plain = Dataset.from_dict(rows)
    numbers = plain.cast_column("label", ClassLabel(names=["0", "1"]))
    assert tuple(label_names(TASKS["mrpc"], numbers)) == TASKS["mrpc"].labels
    with pytest.raises(ValueError, match=r"labels of mrpc must be not_equivalent.*; got no, yes"):
        label_names(TASKS["mrpc"], plain.cast_column("label", ClassLabel(names=["no", "yes"])))


def test_no_network_is_one_sentence_with_the_way_out(tmp_path):
    with pytest.raises(ConnectionError, match=r"cannot be loaded from the Hub: .*--dataset_dir"):
        load_task(TASKS["sst2"], ["train"], cache_dir=str(tmp_path))
