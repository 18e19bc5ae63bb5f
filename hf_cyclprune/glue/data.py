"""GLUE from the Hub or from a folder: loaded, checked and tokenized."""

import glob
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Value, load_dataset
from datasets.exceptions import DatasetsError
from transformers import PreTrainedTokenizerBase

from hf_cyclprune.checks import reason_of
from hf_cyclprune.glue.tasks import GlueTask

HUB_DATASET = "nyu-mll/glue"


def load_task(
    task: GlueTask,
    wanted: Sequence[str],
    dataset_dir: str | None = None,
    cache_dir: str | None = None,
) -> dict[str, Dataset]:
    """Load splits with the columns of a task, and with labels except in test sets.

    `wanted` are some of "train", "validation" and "test". They come from the Hub's GLUE, unless
    `dataset_dir` is a folder with TASK/SPLIT.parquet. mnli has two validation and two test sets;
    in a folder a single file `validation` is enough.

    Raises:
        ValueError: a file or a column is missing or does not fit the task.
        ConnectionError: the Hub cannot be reached.
    """
    if dataset_dir is None:
        try:
            loaded = load_dataset(HUB_DATASET, task.name, cache_dir=cache_dir)
        except (OSError, DatasetsError) as error:
            raise ConnectionError(
                f"{HUB_DATASET} cannot be loaded from the Hub: {error}. Check the network, or pass "
                "--dataset_dir with a folder that holds the task."
            ) from error
        splits = {name: loaded[name] for kind in wanted for name in task.splits(kind)}
    else:
        files = _find_files(task, Path(dataset_dir), wanted)
        splits = {name: _load_file(file, cache_dir) for name, file in files.items()}
    return {name: _select(task, name, split) for name, split in splits.items()}


def _load_file(file: Path, cache_dir: str | None) -> Any:
    try:
        # datasets takes the path as a pattern
        return Dataset.from_parquet(glob.escape(str(file)), cache_dir=cache_dir)
    except (DatasetsError, OSError, ValueError) as error:
        reason = reason_of(error.__cause__ or error)  # what happened while it was read
        raise ValueError(
            f"dataset_dir must hold {file.parent.name}/{file.name} as a parquet file with rows; "
            f"got '{file}': {reason}. Write the file again."
        ) from error


def _find_files(task: GlueTask, folder: Path, wanted: Sequence[str]) -> dict[str, Path]:
    """Return the file of every wanted split by the split's name."""
    files: dict[str, Path] = {}
    for kind in wanted:
        paths = {name: folder / task.name / f"{name}.parquet" for name in task.splits(kind)}
        single = folder / task.name / f"{kind}.parquet"
        if kind == "validation" and single.is_file() and not any(map(Path.is_file, paths.values())):
            paths = {kind: single}
        files |= paths
    for path in files.values():
        if not path.is_file():
            raise ValueError(
                f"dataset_dir must hold {task.name}/{path.name}; got '{folder}', where it is "
                "missing. Add it, or leave dataset_dir out to load GLUE from the Hub."
            )
    return files


def _select(task: GlueTask, split: str, data: Dataset) -> Dataset:
    """Return the task's columns after checking them."""
    wanted = task.columns if split in task.splits("test") else (*task.columns, "label")
    missing = [column for column in wanted if column not in data.column_names]
    if missing:
        raise ValueError(
            f"The {split} split of {task.name} must have the columns {', '.join(wanted)}; got "
            f"{', '.join(data.column_names)}. Rename the column that holds '{missing[0]}'."
        )
    data = data.select_columns(list(wanted))
    if not len(data):
        raise ValueError(f"The {split} split of {task.name} has no rows. Add some to its file.")
    for column in task.columns:
        kind, num_nulls = data.features[column], data.data.column(column).null_count
        if num_nulls or kind not in (Value("string"), Value("large_string")):
            got = f"{num_nulls} without a value" if num_nulls else str(kind)
            raise ValueError(
                f"The column '{column}' of {task.name}/{split} must hold texts; got {got}. Write a "
                "string in every row."
            )
    if "label" in wanted:
        _check_labels(task, split, data)
    return data


def _check_labels(task: GlueTask, split: str, data: Dataset) -> None:
    odd = _find_odd_labels(task, data)
    if odd:
        rule = f"the integers 0 to {len(task.labels) - 1} ({', '.join(task.labels)})"
        raise ValueError(
            f"The column 'label' of {task.name}/{split} must hold "
            f"{'numbers >= 0' if task.is_regression else rule}; got {', '.join(odd[:4])}. "
            "Convert the labels."
        )
    label_names(task, data)


def _find_odd_labels(task: GlueTask, data: Dataset) -> list[str]:
    """Describe everything in the label column that is not a label of the task."""
    if data.data.column("label").null_count:
        return ["rows without a label"]
    kind = data.features["label"]
    is_flat = isinstance(kind, Value | ClassLabel)
    labels = np.asarray(data.with_format("numpy")["label"][:]) if is_flat else np.zeros(0, object)
    if labels.dtype.kind not in ("iuf" if task.is_regression else "iu"):
        return [str(kind)]
    last = math.inf if task.is_regression else len(task.labels) - 1
    return [str(label) for label in np.unique(labels[~((labels >= 0) & (labels <= last))])]


def label_names(task: GlueTask, data: Dataset) -> Sequence[str]:
    """Return the task's labels in the order of the ids in `data`, which may name its own order.

    Raises:
        ValueError: the data name other labels.
    """
    feature = data.features["label"]
    named = tuple(n.lower() for n in feature.names) if isinstance(feature, ClassLabel) else ()
    if all(name.isdecimal() for name in named):
        return task.labels
    if set(named) != set(task.labels):
        raise ValueError(
            f"The labels of {task.name} must be {', '.join(task.labels)}; got "
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
    """Turn texts into at most `max_length` token ids, not padded; datasets caches the result.

    `label_ids` are the model's ids for the label ids in `data`; None keeps those.
    """

    def encode(rows: dict[str, list[Any]]) -> dict[str, Any]:
        texts = [rows[column] for column in task.columns]
        encoded = dict(tokenizer(*texts, truncation=True, max_length=max_length))
        if "label" in rows:
            ids = rows["label"]
            encoded["labels"] = ids if label_ids is None else [label_ids[i] for i in ids]
        return encoded

    return data.map(
        encode,
        batched=True,
        remove_columns=data.column_names,
        load_from_cache_file=not overwrite_cache,
        desc=f"Tokenizing {task.name}",
    )
