"""GLUE from the Hub or from a folder, tokenized."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Value, load_dataset
from transformers import PreTrainedTokenizerBase

from hf_cyclprune.glue.tasks import GlueTask

HUB_DATASET = "nyu-mll/glue"


def load_task(
    task: GlueTask, dataset_dir: str | None = None, cache_dir: str | None = None
) -> DatasetDict:
    """All splits of a task.

    Args:
        task: which.
        dataset_dir: a folder with TASK/train.parquet, TASK/validation.parquet, for mnli
            validation_matched and validation_mismatched (or validation alone), and perhaps test;
            None takes the Hub's.
        cache_dir: where downloads are kept.

    Raises:
        ValueError: a file or a column is missing, or holds something else than the task's.
        ConnectionError: the Hub cannot be reached.
    """
    if dataset_dir is None:
        splits = _load_from_hub(task, cache_dir)
    else:
        files = _find_files(task, Path(dataset_dir))
        splits = load_dataset("parquet", data_files=files, cache_dir=cache_dir)
    assert isinstance(splits, DatasetDict)
    for name, split in splits.items():
        _check_columns(task, str(name), split)
    return splits


def _load_from_hub(task: GlueTask, cache_dir: str | None) -> Any:
    try:
        return load_dataset(HUB_DATASET, task.name, cache_dir=cache_dir)
    except ConnectionError as error:
        raise ConnectionError(
            f"the Hub must be reachable to load {HUB_DATASET}; got: {error}. Check the network, or "
            "pass --dataset_dir with a folder that holds the task."
        ) from error


def _find_files(task: GlueTask, folder: Path) -> dict[str, str]:
    present = {path.stem: str(path) for path in sorted((folder / task.name).glob("*.parquet"))}
    wanted = ("train", *task.validation_splits)
    missing = [split for split in wanted if split not in present]
    if missing and len(task.validation_splits) > 1 and "validation" in present:
        missing = [split for split in missing if split == "train"]
    if missing:
        raise ValueError(
            f"dataset_dir must hold {task.name}/{missing[0]}.parquet; got '{folder}' without it. "
            "Leave dataset_dir out to load GLUE from the Hub."
        )
    known = {*wanted, *task.test_splits, "validation"}
    return {split: file for split, file in present.items() if split in known}


def _check_columns(task: GlueTask, split: str, data: Dataset) -> None:
    is_test = split in task.test_splits
    wanted = task.columns if is_test else (*task.columns, "label")
    missing = [c for c in wanted if c not in data.column_names]
    if missing:
        raise ValueError(
            f"the {split} split of {task.name} must have the columns {', '.join(wanted)}; got "
            f"{', '.join(data.column_names)}. Rename the one that holds '{missing[0]}'."
        )
    for column in task.columns:
        if data.features[column] not in (Value("string"), Value("large_string")):
            raise ValueError(
                f"the column '{column}' of {task.name}/{split} must hold texts; got "
                f"{data.features[column]}. Write it as strings."
            )
    if not is_test:
        _check_labels(task, split, np.asarray(data.with_format("numpy")["label"][:]))


def _check_labels(task: GlueTask, split: str, labels: Any) -> None:
    if task.is_regression:
        is_right = labels.dtype.kind in "iuf" and bool(np.isfinite(labels).all())
        rule = "finite numbers"
    else:
        last = len(task.labels) - 1
        is_right = labels.dtype.kind in "iu" and bool(((labels >= 0) & (labels <= last)).all())
        rule = f"the integers 0 to {last} ({', '.join(task.labels)})"
    if not is_right:
        odd = sorted(set(labels.tolist()), key=str)[:4]
        raise ValueError(
            f"the column 'label' of {task.name}/{split} must hold {rule}; got "
            f"{', '.join(map(str, odd))} .. ({labels.dtype}). Write the labels so."
        )


def label_names(task: GlueTask, data: Dataset) -> Sequence[str]:
    """The task's labels in the order of the ids in `data`, which may name its own order."""
    feature = data.features["label"]
    named = tuple(feature.names) if isinstance(feature, ClassLabel) else ()
    return named if set(named) == set(task.labels) else task.labels


def tokenize(
    task: GlueTask,
    data: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    label_ids: Sequence[int] | None = None,
    overwrite_cache: bool = False,
) -> Dataset:
    """Token ids, and labels where there are any but unknown ones; not padded; cached by datasets.

    Args:
        label_ids: the id to train with for each id of the data; None leaves them.
    """
    has_labels = "label" in data.column_names and -1 not in data.unique("label")

    def encode(rows: dict[str, list[Any]]) -> dict[str, Any]:
        texts = [rows[column] for column in task.columns]
        encoded = dict(tokenizer(*texts, truncation=True, max_length=max_length))
        if not has_labels:
            return encoded
        labels = rows["label"]
        if label_ids is not None:
            labels = [label_ids[label] for label in labels]
        return {**encoded, "labels": labels}

    return data.map(
        encode,
        batched=True,
        remove_columns=data.column_names,
        load_from_cache_file=not overwrite_cache,
        desc=f"Tokenizing {task.name}",
    )
