"""GLUE from the Hub or from a folder, tokenized."""

import glob
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Value, load_dataset
from datasets.exceptions import DatasetsError
from transformers import PreTrainedTokenizerBase

from hf_cyclprune.glue.tasks import GlueTask

HUB_DATASET = "nyu-mll/glue"


def load_task(
    task: GlueTask,
    wanted: Sequence[str],
    dataset_dir: str | None = None,
    cache_dir: str | None = None,
) -> dict[str, Dataset]:
    """Splits of a task, with its columns and, but for the test sets, its labels.

    Args:
        task: which.
        wanted: of "train", "validation" and "test"; mnli has two of the last two, and a folder may
            hold a single `validation` instead.
        dataset_dir: a folder with TASK/SPLIT.parquet; None takes the Hub's GLUE.
        cache_dir: where downloads are kept.

    Raises:
        ValueError: a file or a column is missing, or holds something else than the task's.
        ConnectionError: the Hub cannot be reached.
    """
    if dataset_dir is None:
        names = [name for kind in wanted for name in task.splits(kind)]
        loaded = _load_from_hub(task, cache_dir)
        splits = {name: loaded[name] for name in names}
    else:
        files = _find_files(task, Path(dataset_dir).expanduser(), wanted)
        splits = {name: _load_file(file, cache_dir) for name, file in files.items()}
    return {name: _select(task, name, split) for name, split in splits.items()}


def _load_from_hub(task: GlueTask, cache_dir: str | None) -> Any:
    try:
        return load_dataset(HUB_DATASET, task.name, cache_dir=cache_dir)
    except (OSError, DatasetsError) as error:
        raise ConnectionError(
            f"the Hub must be reachable to load {HUB_DATASET}; got: {error}. Check the network, or "
            "pass --dataset_dir with a folder that holds the task."
        ) from error


def _load_file(file: Path, cache_dir: str | None) -> Any:
    try:
        # datasets takes the path as a pattern
        return Dataset.from_parquet(glob.escape(str(file)), cache_dir=cache_dir)
    except (DatasetsError, OSError, ValueError) as error:
        raise ValueError(
            f"{file} must be a parquet file with rows; got: {error}. Write it again."
        ) from error


def _find_files(task: GlueTask, folder: Path, wanted: Sequence[str]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for kind in wanted:
        names = task.splits(kind)
        paths = [folder / task.name / f"{name}.parquet" for name in names]
        single = folder / task.name / f"{kind}.parquet"
        if kind == "validation" and single.is_file() and not any(p.is_file() for p in paths):
            names, paths = (kind,), [single]
        for name, path in zip(names, paths, strict=True):
            if not path.is_file():
                raise ValueError(
                    f"dataset_dir must hold {task.name}/{path.name}; got '{folder}' without it. "
                    "Add it, or leave dataset_dir out to load GLUE from the Hub."
                )
            files[name] = path
    return files


def _select(task: GlueTask, split: str, data: Dataset) -> Dataset:
    """The columns of the task, checked."""
    wanted = task.columns if split in task.splits("test") else (*task.columns, "label")
    missing = [c for c in wanted if c not in data.column_names]
    if missing:
        raise ValueError(
            f"the {split} split of {task.name} must have the columns {', '.join(wanted)}; got "
            f"{', '.join(data.column_names)}. Rename the one that holds '{missing[0]}'."
        )
    data = data.select_columns(list(wanted))
    if not len(data):
        raise ValueError(f"the {split} split of {task.name} must have rows; got none. Add some.")
    for column in task.columns:
        _check_texts(task, split, column, data)
    if "label" in wanted:
        _check_labels(task, split, data)
    return data


def _check_texts(task: GlueTask, split: str, column: str, data: Dataset) -> None:
    kind, num_nulls = data.features[column], data.data.column(column).null_count
    if num_nulls or kind not in (Value("string"), Value("large_string")):
        got = f"{num_nulls} without a value" if num_nulls else str(kind)
        raise ValueError(
            f"the column '{column}' of {task.name}/{split} must hold texts; got {got}. Write "
            "strings in every row."
        )


def _check_labels(task: GlueTask, split: str, data: Dataset) -> None:
    kinds = "iuf" if task.is_regression else "iu"
    last = math.inf if task.is_regression else len(task.labels) - 1
    is_flat = isinstance(data.features["label"], Value | ClassLabel)
    has_nulls = bool(data.data.column("label").null_count)
    labels = np.asarray(data.with_format("numpy")["label"][:]) if is_flat else np.zeros(0, object)
    if labels.dtype.kind not in kinds:
        odd = [str(data.features["label"])]
    else:
        odd = [str(x) for x in np.unique(labels[~((labels >= 0) & (labels <= last))])]
    if has_nulls:
        odd = ["rows without a label"]
    if odd:
        rule = "numbers from 0 on"
        if not task.is_regression:
            rule = f"the integers 0 to {last} ({', '.join(task.labels)})"
        raise ValueError(
            f"the column 'label' of {task.name}/{split} must hold {rule}; got "
            f"{', '.join(odd[:4])}. Write the labels so."
        )
    label_names(task, data)


def label_names(task: GlueTask, data: Dataset) -> Sequence[str]:
    """The task's labels in the order of the ids in `data`, which may name its own order.

    Raises:
        ValueError: it names other labels.
    """
    feature = data.features["label"]
    named = tuple(n.lower() for n in feature.names) if isinstance(feature, ClassLabel) else ()
    if not named or all(name.isdecimal() for name in named):
        return task.labels
    if set(named) != set(task.labels):
        raise ValueError(
            f"the labels of {task.name} must be {', '.join(task.labels)}; got "
            f"{', '.join(named)}. Rename them, or store plain integers."
        )
    return named


def tokenize(
    task: GlueTask,
    data: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    label_ids: Sequence[int] | None = None,
    overwrite_cache: bool = False,
) -> Dataset:
    """Token ids, and labels where there are any; not padded; cached by datasets.

    Args:
        label_ids: the id to train with for each id of the data; None leaves them.
    """
    has_labels = "label" in data.column_names

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
