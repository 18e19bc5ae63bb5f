"""The splits of a task as examples for a Trainer: shortened, tokenized and sorted by purpose."""

from collections.abc import Mapping
from typing import NamedTuple

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_cyclprune.glue.arguments import GlueArguments
from hf_cyclprune.glue.data import label_names, tokenize
from hf_cyclprune.glue.tasks import GlueTask

_VALIDATION = {"validation": "", "validation_matched": "", "validation_mismatched": "_mm"}
_TEST = {"test": "", "test_matched": "", "test_mismatched": "-mm"}


class Examples(NamedTuple):
    """Tokenized examples, not padded; splits that were not loaded are missing."""

    train: Dataset | None
    evaluation: dict[str, Dataset]
    """Validation sets by the suffix of their metrics: "", and "_mm" for mnli's mismatched one."""
    prediction: dict[str, Dataset]
    """Test sets by the suffix of their file's name: "", and "-mm" for mnli's mismatched one."""


def make_examples(
    glue: GlueArguments,
    task: GlueTask,
    splits: Mapping[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    ids: Mapping[str, int],
) -> Examples:
    """Tokenize the first examples of each split, as many as the max_*_samples allow.

    `ids` are the model's ids of the labels.
    """

    def encode(name: str, limit: int | None) -> Dataset:
        split = splits[name]
        split = split if limit is None else split.select(range(min(limit, len(split))))
        is_mapped = not task.is_regression and "label" in split.column_names
        order = [ids[label] for label in label_names(task, split)] if is_mapped else None
        return tokenize(task, split, tokenizer, glue.max_seq_length, order, glue.overwrite_cache)

    def encode_all(suffixes: Mapping[str, str], limit: int | None) -> dict[str, Dataset]:
        return {suffixes[name]: encode(name, limit) for name in suffixes if name in splits}

    return Examples(
        train=encode("train", glue.max_train_samples) if "train" in splits else None,
        evaluation=encode_all(_VALIDATION, glue.max_eval_samples),
        prediction=encode_all(_TEST, glue.max_predict_samples),
    )
