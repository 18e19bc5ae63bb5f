"""The flags of a GLUE run that are neither training nor pruning, under the names of run_glue."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from hf_cyclprune.checks import check_count, check_known, check_positive, use_json_values_
from hf_cyclprune.glue.tasks import TASKS, GlueTask, get_task
from hf_cyclprune.training.arguments import PruningArguments
from hf_cyclprune.training.device import has_accelerator


def _option(meaning: str, default: object = dataclasses.MISSING) -> Any:
    """Return a dataclass field with the help text of its flag."""
    return dataclasses.field(default=default, metadata={"help": meaning})


@dataclass
class GlueArguments:
    """Model, task and data.

    Raises:
        ValueError: the task is unknown, or a number is out of its range.

    >>> GlueArguments("SST2", "google-bert/bert-base-uncased").task_name
    'sst2'
    """

    task_name: str = _option(f"Task to fine-tune on: {', '.join(TASKS)}.")
    model_name_or_path: str = _option("Model to start from: a name on the Hub, or a folder.")
    config_name: str | None = _option("Take the config from this model instead.", None)
    tokenizer_name: str | None = _option(
        "Take the tokenizer from this model instead; needed where the folder has none.", None
    )
    model_revision: str = _option("Branch, tag or commit of the model on the Hub.", "main")
    cache_dir: str | None = _option(
        "Folder for downloads and tokenized data. Set it if the default disk is small.", None
    )
    ignore_mismatched_sizes: bool = _option(
        "Replace a head of another size with a new one, for a model of another task.", False
    )
    dataset_dir: str | None = _option(
        "Folder with TASK/train.parquet and TASK/validation.parquet to read instead of the Hub's "
        "GLUE, for use without a network.",
        None,
    )
    max_seq_length: int = _option(
        "Cut examples after this many tokens. Lower it to save time where texts are short.", 128
    )
    pad_to_max_length: bool = _option(
        "Pad every batch to max_seq_length instead of to its longest example; slower, but some "
        "accelerators need equal shapes.",
        False,
    )
    overwrite_cache: bool = _option("Tokenize again instead of using the cached data.", False)
    max_train_samples: int | None = _option("Train on the first N examples, to try it out.", None)
    max_eval_samples: int | None = _option("Evaluate on the first N examples only.", None)
    max_predict_samples: int | None = _option("Predict the first N examples only.", None)
    dense_run: str | None = _option(
        "output_dir of a dense run of the same task. The model card then compares the two.", None
    )

    def __post_init__(self) -> None:
        use_json_values_(self)
        self.task_name = get_task(self.task_name).name
        check_count("max_seq_length", self.max_seq_length)
        for name in ("max_train_samples", "max_eval_samples", "max_predict_samples"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))


def check_together(args: PruningArguments, task: GlueTask) -> None:
    """Raise a ValueError for training arguments that contradict each other, the task or sense."""
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size"):
        check_count(name, getattr(args, name))
    check_count("gradient_accumulation_steps", args.gradient_accumulation_steps)
    if args.do_train and args.max_steps <= 0:
        check_positive("num_train_epochs", args.num_train_epochs)
    if not (args.do_train or args.do_eval or args.do_predict):
        raise ValueError("One of do_train, do_eval and do_predict must be True. Add --do_train.")
    if args.is_pruning and not args.do_train:
        raise ValueError(
            "sparsity and pattern need do_train. Add --do_train, or drop them to evaluate "
            "the model as it is."
        )
    if args.fp16 and not has_accelerator():
        raise ValueError("fp16 needs an accelerator such as a GPU. Use --bf16, or neither.")
    best = args.metric_for_best_model
    if args.load_best_model_at_end and best is not None:
        known = sorted({"loss", task.best_metric, *task.metrics})
        check_known("metric_for_best_model", best.removeprefix("eval_"), known)
