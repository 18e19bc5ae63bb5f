"""The splits of a task as examples for a Trainer: shortened, tokenized, by purpose."""

from collections.abc import Mapping
from dataclasses import dataclass

from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from hf_cyclprune.glue.arguments import GlueArguments
from hf_cyclprune.glue.data import label_names, tokenize
from hf_cyclprune.glue.tasks import GlueTask


@dataclass(frozen=True)
class Examples:
    """Tokenized examples, not padded."""

    train: Dataset
    evaluation: dict[str, Dataset]
    """Suffix of the metrics' names -> validation set: "", and "_mm" for mnli's mismatched one."""
    prediction: dict[str, Dataset]
    """Suffix of the task's name in the file's -> test set: "", and "-mm" for mnli's."""


def make_examples(
    glue: GlueArguments,
    task: GlueTask,
    splits: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    ids: Mapping[str, int],
) -> Examples:
    """Tokenize as many of each split as are asked for.

    Args:
        ids: label -> id of the model.
    """

    def encode(name: str, limit: int | None) -> Dataset:
        split = splits[name]
        split = split if limit is None else split.select(range(min(limit, len(split))))
        is_labelled = not task.is_regression and name not in task.test_splits
        order = [ids[label] for label in label_names(task, split)] if is_labelled else None
        return tokenize(task, split, tokenizer, glue.max_seq_length, order, glue.overwrite_cache)

    names = dict.fromkeys((*task.validation_splits, "validation"))
    validation = [name for name in names if name in splits]
    test = [name for name in task.test_splits if name in splits]
    return Examples(
        train=encode("train", glue.max_train_samples),
        evaluation={
            suffix: encode(name, glue.max_eval_samples)
            for name, suffix in zip(validation, ("", "_mm"), strict=False)
        },
        prediction={
            suffix: encode(name, glue.max_predict_samples)
            for name, suffix in zip(test, ("", "-mm"), strict=False)
        },
    )
