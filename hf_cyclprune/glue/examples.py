"""The splits of a task as examples for a Trainer: shortened, tokenized, by purpose."""

from collections.abc import Mapping
from dataclasses import dataclass

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_cyclprune.glue.arguments import GlueArguments
from hf_cyclprune.glue.data import label_names, tokenize
from hf_cyclprune.glue.tasks import GlueTask


@dataclass(frozen=True)
class Examples:
    """Tokenized examples, not padded; what was not loaded is not there."""

    train: Dataset | None
    evaluation: dict[str, Dataset]
    """Suffix of the metrics' names -> validation set: "", and "_mm" for mnli's mismatched one."""
    prediction: dict[str, Dataset]
    """Suffix of the task's name in the file's -> test set: "", and "-mm" for mnli's."""


def make_examples(
    glue: GlueArguments,
    task: GlueTask,
    splits: Mapping[str, Dataset],
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
        is_mapped = not task.is_regression and "label" in split.column_names
        order = [ids[label] for label in label_names(task, split)] if is_mapped else None
        return tokenize(task, split, tokenizer, glue.max_seq_length, order, glue.overwrite_cache)

    validation = dict.fromkeys(("validation", *task.splits("validation")), "")
    validation["validation_mismatched"] = "_mm"
    test = {"test": "", "test_matched": "", "test_mismatched": "-mm"}
    return Examples(
        train=encode("train", glue.max_train_samples) if "train" in splits else None,
        evaluation={
            suffix: encode(name, glue.max_eval_samples)
            for name, suffix in validation.items()
            if name in splits
        },
        prediction={
            suffix: encode(name, glue.max_predict_samples)
            for name, suffix in test.items()
            if name in splits
        },
    )
