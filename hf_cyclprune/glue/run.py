"""One GLUE run: arguments -> data -> model -> Trainer -> the files that run_glue writes."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import (
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.utils import logging

from hf_cyclprune.checks import check_known
from hf_cyclprune.glue.arguments import GlueArguments
from hf_cyclprune.glue.data import HUB_DATASET, load_task
from hf_cyclprune.glue.examples import Examples, make_examples
from hf_cyclprune.glue.metrics import score
from hf_cyclprune.glue.model import (
    check_length,
    load_classifier,
    load_task_config,
    load_tokenizer,
)
from hf_cyclprune.glue.output import (
    check_output_dir,
    find_checkpoint,
    save_identity,
    write_predictions,
)
from hf_cyclprune.glue.tasks import GlueTask, get_task
from hf_cyclprune.glue.train_loss import GlueTrainer
from hf_cyclprune.reporting.folder import read_results
from hf_cyclprune.reporting.report import SparsityReport
from hf_cyclprune.training.arguments import PruningArguments
from hf_cyclprune.training.device import has_accelerator

logger = logging.get_logger(__name__)

Metrics = dict[str, Any]


def run_glue(glue: GlueArguments, args: PruningArguments) -> Metrics:
    """Train, evaluate and predict as do_train, do_eval and do_predict say.

    Writes into `args.output_dir` the model and its card; pruning_config.json, sparsity_report.json
    and pruning_run.json if it was pruned; train_results.json, eval_results.json, all_results.json;
    predict_results_TASK.txt.
    In one process in fp32 a run that was stopped and resumed has the results of one that was not,
    other than times.

    Returns:
        What all_results.json holds of this call: train_loss, eval_accuracy, sparsity (counted in
        the weights), ..

    Raises:
        ValueError: flags that do not go together, an output_dir that holds another run, data that
            are not the task's, a model that cannot be had.
        ConnectionError: the Hub's GLUE cannot be reached.
    """
    task = get_task(glue.task_name)
    _check_together(args, task)
    if glue.dense_run is not None:
        read_results(glue.dense_run)
    checkpoint = find_checkpoint(args) if args.do_train else None
    if args.should_save:  # the process that writes
        check_output_dir(args, glue, checkpoint)
    set_seed(args.seed)
    run = _Run.prepare(glue, args, task)
    if args.should_save and args.do_train:
        save_identity(args, glue)
    metrics: Metrics = {}
    if args.do_train:
        # for True the Trainer looks again, and clears what a kill left
        is_newest = str(args.resume_from_checkpoint).lower() == "true"
        metrics |= run.train(True if checkpoint and is_newest else checkpoint)
    if args.do_eval:
        metrics |= run.evaluate()
    if args.do_predict:
        run.predict()
    run.publish(metrics, glue.dense_run)
    return metrics


def _check_together(args: PruningArguments, task: GlueTask) -> None:
    if not (args.do_train or args.do_eval or args.do_predict):
        raise ValueError(
            "one of do_train, do_eval, do_predict must be True; got none. Add --do_train."
        )
    if args.is_pruning and not args.do_train:
        raise ValueError(
            "sparsity and pattern must come with do_train; got them without. Add --do_train, or "
            "drop them to evaluate the model as it is."
        )
    if args.fp16 and not has_accelerator():
        raise ValueError(
            "fp16 must have an accelerator, such as a GPU; got a CPU. Use --bf16, or neither."
        )
    _check_best_metric(args, task)


def _check_best_metric(args: PruningArguments, task: GlueTask) -> None:
    best = args.metric_for_best_model
    if not args.load_best_model_at_end or best is None:
        return
    known = sorted({"loss", task.best_metric, *task.metrics})
    check_known("metric_for_best_model", best.removeprefix("eval_"), known)


def _wanted_splits(args: PruningArguments) -> list[str]:
    """The kinds of splits that a run needs."""
    has_evaluation = args.do_eval or (args.do_train and args.eval_strategy != "no")
    needs = {"train": args.do_train, "validation": has_evaluation, "test": args.do_predict}
    return [kind for kind, is_needed in needs.items() if is_needed]


@dataclass(frozen=True)
class _Run:
    """A Trainer with its data."""

    task: GlueTask
    trainer: GlueTrainer
    examples: Examples

    @classmethod
    def prepare(cls, glue: GlueArguments, args: PruningArguments, task: GlueTask) -> "_Run":
        """What is wrong with names and data shows before the model is loaded."""
        config = load_task_config(glue, task)
        tokenizer = load_tokenizer(glue)
        glue = replace(glue, max_seq_length=check_length(glue, tokenizer, config))
        with args.main_process_first(desc="loading the data"):
            splits = load_task(task, _wanted_splits(args), glue.dataset_dir, glue.cache_dir)
        model = load_classifier(glue, config)
        ids: Any = config.label2id
        with args.main_process_first(desc="tokenizing the data"):
            examples = make_examples(glue, task, splits, tokenizer, ids)
        options: dict[str, Any] = {
            "model": model,
            "args": args,
            "train_dataset": examples.train,
            "eval_dataset": examples.evaluation.get(""),
            "processing_class": tokenizer,
            "data_collator": _make_collator(glue, args, tokenizer),
            "compute_metrics": lambda prediction: _score(task, ids, prediction),
        }
        try:
            return cls(task, GlueTrainer(**options), examples)
        except RuntimeError as error:  # a tracker that is not installed, for example
            raise ValueError(str(error)) from error

    @property
    def folder(self) -> Path:
        return Path(str(self.trainer.args.output_dir))

    def train(self, checkpoint: str | bool | None) -> Metrics:
        result = self.trainer.train(resume_from_checkpoint=checkpoint)
        assert self.examples.train is not None
        num_samples = len(self.examples.train)
        metrics = {**result.metrics, "train_samples": num_samples, **self._sparsity()}
        self.trainer.save_model(_internal_call=True)  # the push comes at the end
        self.trainer.log_metrics("train", metrics)
        self.trainer.save_metrics("train", metrics)
        self.trainer.save_state()
        return metrics

    def evaluate(self) -> Metrics:
        """Metrics of every validation set, and the sparsity of the model."""
        metrics: Metrics = {}
        for suffix, data in self.examples.evaluation.items():
            values = {**self.trainer.evaluate(eval_dataset=data), "eval_samples": len(data)}
            self.trainer.log_metrics(f"eval{suffix}", values)
            metrics |= {
                name + suffix: value
                for name, value in values.items()
                if name.startswith("eval_") or not suffix
            }
        metrics |= self._sparsity()
        self.trainer.save_metrics("eval", metrics)
        return metrics

    def _sparsity(self) -> Metrics:
        """Counted in the weights; nothing for a dense model whose weights are not known."""
        report = self.trainer.sparsity_report()
        if report is None:
            assert self.trainer.model is not None
            try:
                report = SparsityReport.measure(self.trainer.model)
            except ValueError as error:
                logger.info(f"The sparsity of this model is not counted: {error}")
                return {}
        return {"sparsity": report.sparsity}

    def predict(self) -> None:
        for suffix, data in self.examples.prediction.items():
            output = self.trainer.predict(data, metric_key_prefix="predict")
            rows = list(self._in_words(_outputs(output.predictions)))
            if self.trainer.is_world_process_zero():
                file = f"predict_results_{self.task.name}{suffix}.txt"
                write_predictions(self.folder / file, rows)

    def publish(self, metrics: Metrics, dense_run: str | None) -> None:
        """Write the model card of a model that was trained here; push it if push_to_hub says so."""
        trainer = self.trainer
        about: dict[str, Any] = {
            "language": "en",
            "tasks": "text-classification",
            "dataset_tags": HUB_DATASET,
            "dataset_args": self.task.name,
            "dataset": f"GLUE {self.task.name.upper()}",
        }
        if trainer.sparsity_report() is not None:
            evaluated = {k: v for k, v in metrics.items() if k.startswith("eval_")}
            place = {"config": self.task.name}
            if len(self.task.validation_splits) == 1:
                place["split"] = self.task.validation_splits[0]
            about |= {
                "metrics": evaluated or None,
                "dense_run": dense_run,
                "dataset_metadata": place,
            }
        if trainer.args.push_to_hub:
            trainer.push_to_hub(**about)
        elif trainer.args.do_train:
            trainer.create_model_card(**about)

    def _in_words(self, outputs: Any) -> Iterator[str]:
        model: Any = self.trainer.model
        if self.task.is_regression:
            return (f"{value:.3f}" for value in outputs.reshape(-1))
        names = model.config.id2label
        return (names[int(index)] for index in outputs.argmax(-1))


def _make_collator(
    glue: GlueArguments, args: PruningArguments, tokenizer: PreTrainedTokenizerBase
) -> DataCollatorWithPadding:
    return DataCollatorWithPadding(
        tokenizer,
        padding="max_length" if glue.pad_to_max_length else True,
        max_length=glue.max_seq_length if glue.pad_to_max_length else None,
        pad_to_multiple_of=8 if args.fp16 else None,
    )


def _outputs(predictions: Any) -> Any:
    """Logits, also of a model that returns more."""
    return np.asarray(predictions[0] if isinstance(predictions, tuple) else predictions)


def _score(task: GlueTask, ids: dict[str, int], prediction: EvalPrediction) -> dict[str, float]:
    """The task's metrics, which are defined for its own label ids, not for the model's."""
    outputs, labels = _outputs(prediction.predictions), np.asarray(prediction.label_ids)
    if task.is_regression:
        return score(task, outputs.reshape(-1), labels)
    own = np.argsort([ids[label] for label in task.labels])  # the model's id -> the task's
    return score(task, own[outputs.argmax(-1)], own[labels])
