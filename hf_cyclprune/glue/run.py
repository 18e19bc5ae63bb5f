"""One GLUE run: arguments -> data -> model -> Trainer -> files with the names of run_glue's."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import DataCollatorWithPadding, EvalPrediction, set_seed
from transformers.utils import logging

from hf_cyclprune.glue.arguments import GlueArguments, check_together
from hf_cyclprune.glue.data import HUB_DATASET, load_task
from hf_cyclprune.glue.examples import Examples, make_examples
from hf_cyclprune.glue.metrics import score
from hf_cyclprune.glue.model import check_length, load_classifier, load_task_config, load_tokenizer
from hf_cyclprune.glue.output import (
    check_output_dir,
    find_checkpoint,
    save_identity,
    write_predictions,
)
from hf_cyclprune.glue.tasks import GlueTask, get_task
from hf_cyclprune.glue.teacher import prepare_teacher
from hf_cyclprune.glue.train_loss import LossTotal, train_loss_of
from hf_cyclprune.reporting.folder import read_results
from hf_cyclprune.reporting.metrics import evaluated
from hf_cyclprune.reporting.report import SparsityReport
from hf_cyclprune.training.arguments import PruningArguments
from hf_cyclprune.training.trainer import PruningTrainer
from hf_cyclprune.training.upstream import keep_loss_unscaled

logger = logging.get_logger(__name__)

Metrics = dict[str, float]


def run_glue(glue: GlueArguments, args: PruningArguments) -> Metrics:
    """Train, evaluate and predict as do_train, do_eval and do_predict say.

    Writes into `args.output_dir` the model and its card; if it was pruned, pruning_config.json,
    sparsity_report.json and pruning_run.json; and train_results.json, eval_results.json,
    all_results.json and predict_results_TASK.txt; with --teacher self also _teacher/. A resumed run
    in one process in fp32 has the results of an uninterrupted one, except for timings.

    Returns:
        The values that this call added to all_results.json, for example train_loss, eval_accuracy
        and the sparsity counted in the weights.

    Raises:
        ValueError: flags contradict each other, output_dir holds another run, the data do not fit
            the task, or the model cannot be loaded.
        ConnectionError: the Hub's GLUE cannot be reached.
    """
    task = get_task(glue.task_name)
    check_together(args, task)
    if glue.dense_run is not None:
        read_results(glue.dense_run)
    checkpoint = find_checkpoint(args) if args.do_train else None
    if args.should_save:
        check_output_dir(args, glue, checkpoint)
    args = prepare_teacher(glue, args, run_glue)
    set_seed(args.seed)
    run = _Run.prepare(glue, args, task)
    if args.should_save and args.do_train:
        save_identity(args, glue)
    metrics: Metrics = {}
    if args.do_train:
        # with True the Trainer searches again and deletes checkpoints that a crash left incomplete
        is_newest = str(args.resume_from_checkpoint).lower() == "true"
        metrics |= run.train(True if checkpoint and is_newest else checkpoint)
    if args.do_eval:
        metrics |= run.evaluate()
    if args.do_predict:
        run.predict()
    run.publish(metrics, glue.dense_run)
    return metrics


def _wanted_splits(args: PruningArguments) -> list[str]:
    """Return the kinds of splits that the run needs."""
    has_evaluation = args.do_eval or (args.do_train and args.eval_strategy != "no")
    needs = {"train": args.do_train, "validation": has_evaluation, "test": args.do_predict}
    return [kind for kind, is_needed in needs.items() if is_needed]


class _Run(NamedTuple):
    """A Trainer with its data and the actions of run_glue."""

    task: GlueTask
    trainer: PruningTrainer
    examples: Examples

    @classmethod
    def prepare(cls, glue: GlueArguments, args: PruningArguments, task: GlueTask) -> "_Run":
        """Load everything; the model comes last, after the checks of names and data."""
        config = load_task_config(glue, task)
        tokenizer = load_tokenizer(glue)
        glue = replace(glue, max_seq_length=check_length(glue, tokenizer, config))
        with args.main_process_first(desc="loading the data"):
            splits = load_task(task, _wanted_splits(args), glue.dataset_dir, glue.cache_dir)
        model = load_classifier(glue, config)
        if args.fix_loss_scaling:  # dense runs too: they are compared with pruned ones
            keep_loss_unscaled(model)
        ids: dict[str, int] = config.label2id  # type: ignore[assignment]
        with args.main_process_first(desc="tokenizing the data"):
            examples = make_examples(glue, task, splits, tokenizer, ids)
        options: dict[str, Any] = {
            "model": model,
            "args": args,
            "train_dataset": examples.train,
            "eval_dataset": examples.evaluation.get(""),
            "processing_class": tokenizer,
            "data_collator": DataCollatorWithPadding(
                tokenizer,
                padding="max_length" if glue.pad_to_max_length else True,
                max_length=glue.max_seq_length if glue.pad_to_max_length else None,
                pad_to_multiple_of=8 if args.fp16 else None,
            ),
            "preprocess_logits_for_metrics": lambda outputs, _: (
                outputs[0] if isinstance(outputs, tuple) else outputs  # the logits come first
            ),
            "compute_metrics": lambda prediction: _score(task, ids, prediction),
            "callbacks": [LossTotal()],
        }
        try:
            return cls(task, PruningTrainer(**options), examples)
        except RuntimeError as error:  # for example a tracker that is not installed
            raise ValueError(str(error)) from error

    def train(self, checkpoint: str | bool | None) -> Metrics:
        """Train, save the model and return the metrics of training."""
        result = self.trainer.train(resume_from_checkpoint=checkpoint)
        assert self.examples.train is not None
        num_samples = len(self.examples.train)
        metrics = {**result.metrics, **train_loss_of(self.trainer), "train_samples": num_samples}
        metrics |= self._sparsity()
        self.trainer.save_model(_internal_call=True)  # the push comes at the end
        self.trainer.log_metrics("train", metrics)
        self.trainer.save_metrics("train", metrics)
        self.trainer.save_state()
        return metrics

    def evaluate(self) -> Metrics:
        """Evaluate on every validation set; return the metrics and the sparsity of the model."""
        metrics: Metrics = {}
        for suffix, data in self.examples.evaluation.items():
            values = {**self.trainer.evaluate(eval_dataset=data), "eval_samples": len(data)}
            self.trainer.log_metrics(f"eval{suffix}", values)
            metrics |= {
                n + suffix: v for n, v in values.items() if n.startswith("eval_") or not suffix
            }
        metrics |= self._sparsity()
        self.trainer.save_metrics("eval", metrics)
        return metrics

    def _sparsity(self) -> Metrics:
        """Count the zeros; return nothing for a dense model without weights that can be pruned."""
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
        """Write the predictions for every test set."""
        trainer, folder = self.trainer, Path(str(self.trainer.args.output_dir))
        model: Any = trainer.model
        for suffix, data in self.examples.prediction.items():
            outputs: Any = trainer.predict(data, metric_key_prefix="predict").predictions
            if self.task.is_regression:
                rows = [f"{value:.3f}" for value in outputs.reshape(-1)]
            else:
                rows = [model.config.id2label[int(i)] for i in outputs.argmax(-1)]
            if trainer.is_world_process_zero():
                file = f"predict_results_{self.task.name}{suffix}.txt"
                write_predictions(folder / file, rows)

    def publish(self, metrics: Metrics, dense_run: str | None) -> None:
        """Write the model card if the model was trained; with push_to_hub, push everything."""
        trainer = self.trainer
        about: dict[str, Any] = {
            "language": "en",
            "tasks": "text-classification",
            "dataset_tags": HUB_DATASET,
            "dataset_args": self.task.name,
            "dataset": f"GLUE {self.task.name.upper()}",
        }
        if trainer.sparsity_report() is not None:
            splits = self.task.validation_splits
            split = {"split": splits[0]} if len(splits) == 1 else {}
            about |= {
                "metrics": evaluated(metrics) or None,
                "dense_run": dense_run,
                "dataset_metadata": {"config": self.task.name, **split},
            }
        if trainer.args.push_to_hub:
            trainer.push_to_hub(**about)
        elif trainer.args.do_train:
            trainer.create_model_card(**about)


def _score(task: GlueTask, ids: dict[str, int], prediction: EvalPrediction) -> dict[str, float]:
    """Compute the task's metrics after turning the model's label ids into the task's."""
    outputs, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    if task.is_regression:
        return score(task, outputs.reshape(-1), labels)
    own = np.argsort([ids[label] for label in task.labels])  # the model's id -> the task's
    return score(task, own[outputs.argmax(-1)], own[labels])
