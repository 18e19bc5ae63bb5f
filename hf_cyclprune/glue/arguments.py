"""The flags of a GLUE run that are neither training nor pruning; names as in run_glue."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from hf_cyclprune.checks import check_count
from hf_cyclprune.glue.tasks import TASKS, get_task


def _option(meaning: str, default: Any = dataclasses.MISSING) -> Any:
    """A field with the help text of its flag."""
    return dataclasses.field(default=default, metadata={"help": meaning})


@dataclass
class GlueArguments:
    """Model, task and data.

    Raises:
        ValueError: an unknown task, or a number out of its range.

    >>> GlueArguments("SST2", "google-bert/bert-base-uncased").task_name
    'sst2'
    """

    task_name: str = _option(f"One of {', '.join(TASKS)}.")
    model_name_or_path: str = _option("A model of the Hub, or a folder.")
    config_name: str | None = _option("Config, if it is not the model's own.", None)
    tokenizer_name: str | None = _option("Tokenizer, if it is not the model's own.", None)
    model_revision: str = _option("Branch, tag or commit of the model.", "main")
    cache_dir: str | None = _option("Where downloads and tokenized data are kept.", None)
    ignore_mismatched_sizes: bool = _option(
        "Make a new head where the model's is of another size.", False
    )
    dataset_dir: str | None = _option(
        "Folder with TASK/train.parquet and TASK/validation.parquet, instead of the Hub's GLUE.",
        None,
    )
    max_seq_length: int = _option("Tokens of an example; longer ones are cut.", 128)
    pad_to_max_length: bool = _option(
        "Pad every batch to max_seq_length, not to its longest example.", False
    )
    overwrite_cache: bool = _option("Tokenize again.", False)
    max_train_samples: int | None = _option("Train on the first ones only.", None)
    max_eval_samples: int | None = _option("Evaluate on the first ones only.", None)
    max_predict_samples: int | None = _option("Predict the first ones only.", None)
    dense_run: str | None = _option(
        "output_dir of a dense run of the same task, to compare with on the model card.", None
    )

    def __post_init__(self) -> None:
        self.task_name = get_task(self.task_name).name
        check_count("max_seq_length", self.max_seq_length)
        for name in ("max_train_samples", "max_eval_samples", "max_predict_samples"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
