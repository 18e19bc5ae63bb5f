"""GLUE from the Hub or from a folder, tokenized."""

from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset
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
        ValueError: a file or a column is missing.
        ConnectionError: the Hub cannot be reached.
    """
    if dataset_dir is None:
        splits = load_dataset(HUB_DATASET, task.name, cache_dir=cache_dir)
    else:
        files = _find_files(task, Path(dataset_dir))
        splits = load_dataset("parquet", data_files=files, cache_dir=cache_dir)
    assert isinstance(splits, DatasetDict)
    for name, split in splits.items():
        _check_columns(task, str(name), split)
    return splits


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
    missing = [c for c in (*task.columns, "label") if c not in data.column_names]
    if missing:
        raise ValueError(
            f"the {split} split of {task.name} must have the columns "
            f"{', '.join((*task.columns, 'label'))}; got {', '.join(data.column_names)}. "
            f"Rename the one that holds '{missing[0]}'."
        )


def tokenize(
    task: GlueTask,
    data: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    label_ids: dict[str, int] | None = None,
    overwrite_cache: bool = False,
) -> Dataset:
    """Token ids and labels, not padded; cached by datasets.

    Args:
        label_ids: label name -> id of a model that orders its labels in its own way.
    """

    def encode(rows: dict[str, list[Any]]) -> dict[str, Any]:
        texts = [rows[column] for column in task.columns]
        encoded = dict(tokenizer(*texts, truncation=True, max_length=max_length))
        labels = rows["label"]
        if label_ids is not None:  # -1 stands for an unknown label
            order = [label_ids[name] for name in task.labels]
            labels = [order[label] if label >= 0 else label for label in labels]
        return {**encoded, "labels": labels}

    return data.map(
        encode,
        batched=True,
        remove_columns=data.column_names,
        load_from_cache_file=not overwrite_cache,
        desc=f"Tokenizing {task.name}",
    )
