"""The demo: a small BERT fine-tuned twice for equally many steps, dense and pruned in cycles."""

import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EvalPrediction,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging

from hf_cyclprune.config import PruningConfig
from hf_cyclprune.demo.model import find_model
from hf_cyclprune.demo.sentences import LABELS, make_task
from hf_cyclprune.reporting.numbers import number, percent
from hf_cyclprune.reporting.report import SparsityReport
from hf_cyclprune.training.device import has_accelerator, has_fast_bf16
from hf_cyclprune.training.trainer import PruningTrainer

NUM_LAYERS = 3
NUM_STEPS = 120
BATCH_SIZE = 32
NUM_TRAIN = 4000
NUM_VALIDATION = 1200
PRUNING = PruningConfig(sparsity=0.8)

_HEADER = """\
Task: is the word order of a sentence intact, or was its first word swapped with another?
{} training and {} validation sentences from the documentation of this Python's
standard library, different modules for the two. Chance is 0.5; knowing which words begin a
sentence gives about 0.75.
Model: the first {} layers of all-MiniLM-L6-v2, without dropout. {} steps of {} sentences for
each row.

By default sparsity dips on its way up, and weights return with their values
(`hf-cyclprune methods`).

                  accuracy            sparsity  seconds"""


class DemoRow(NamedTuple):
    """One fine-tuned model."""

    name: str
    accuracy: float
    """Share of the validation sentences that are classified correctly; chance is 0.5."""
    sparsity: float
    """Share of zeros, counted in the target weights."""
    seconds: float
    """Duration of the training, without the evaluation."""

    def __str__(self) -> str:
        error = math.sqrt(self.accuracy * (1 - self.accuracy) / NUM_VALIDATION)  # binomial
        accuracy = f"{number(self.accuracy)} +- {number(error)}"
        sparsity = percent(self.sparsity, 4)
        return f"{self.name:<16}  {accuracy:<18}  {sparsity:>8}  {self.seconds:>7.0f}"


def run_demo(output_dir: str | None = None, num_steps: int = NUM_STEPS) -> list[DemoRow]:
    """Train twice for `num_steps`; print and return the rows dense, pruned and reloaded.

    The pruned model is kept in `output_dir`, unless that is None.

    Raises:
        ValueError: the model's package is missing or altered, or output_dir holds files.
        RuntimeError: the reloaded model differs from the saved one.
    """
    if output_dir is not None and Path(output_dir).exists() and any(Path(output_dir).iterdir()):
        raise ValueError(
            f"output_dir must be new or empty; got '{output_dir}', which holds files. "
            "Name another folder."
        )
    with _quiet(), tempfile.TemporaryDirectory() as temporary:
        folder = find_model()
        data = make_task(NUM_TRAIN, NUM_VALIDATION)
        sizes = (*map(len, data), NUM_LAYERS, num_steps, BATCH_SIZE)
        print(_HEADER.format(*sizes), flush=True)
        options = partial(_trainer_options, folder, *data, num_steps, temporary)
        dense, _ = _train("dense", None, folder, options())
        pruned, trainer = _train(PRUNING.method, PRUNING, folder, options())
        kept = output_dir or f"{temporary}/pruned"
        trainer.save_model(kept)
        # the saved model is evaluated with nothing but transformers
        model = AutoModelForSequenceClassification.from_pretrained(kept, dtype=torch.float32)
        reloaded = _evaluate("  reloaded", Trainer(model=model, **options()), 0.0)
    if (reloaded.accuracy, reloaded.sparsity) != (pruned.accuracy, pruned.sparsity):
        raise RuntimeError(f"The reloaded model differs from the saved one: {reloaded}")
    print(f"\n{trainer.sparsity_report()}")
    if output_dir is not None:
        print(f"\nSaved to {output_dir}; loads with AutoModelForSequenceClassification.")
    return [dense, pruned, reloaded]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers, and let it print as before afterwards."""
    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _train(
    name: str, config: PruningConfig | None, folder: Path, options: dict[str, Any]
) -> tuple[DemoRow, PruningTrainer]:
    """Fine-tune, evaluate and print."""
    torch.manual_seed(0)
    # with dropout so few steps hardly leave chance
    model = AutoModelForSequenceClassification.from_pretrained(
        folder,
        dtype=torch.float32,
        num_hidden_layers=NUM_LAYERS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(LABELS)),
    )
    trainer = PruningTrainer(model=model, pruning_config=config, **options)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Bar(name, options["args"].max_steps))
    start = time.perf_counter()
    trainer.train()
    return _evaluate(name, trainer, time.perf_counter() - start), trainer


def _evaluate(name: str, trainer: Trainer, seconds: float) -> DemoRow:
    trainer.remove_callback(PrinterCallback)
    assert trainer.model is not None
    accuracy = trainer.evaluate()["eval_accuracy"]
    row = DemoRow(name, accuracy, SparsityReport.measure(trainer.model).sparsity, seconds)
    print(row, flush=True)
    return row


def _trainer_options(
    folder: Path, train: Dataset, validation: Dataset, num_steps: int, temporary: str
) -> dict[str, Any]:
    """Return the data and the training arguments, which are the same for every row."""
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        texts = [row["text"] for row in rows]
        batch: Any = tokenizer(
            texts, truncation=True, max_length=24, padding=True, return_tensors="pt"
        )
        return {**batch, "labels": torch.tensor([row["label"] for row in rows])}

    args = TrainingArguments(
        output_dir=f"{temporary}/trainer",
        max_steps=num_steps,
        per_device_train_batch_size=BATCH_SIZE,
        per_device_eval_batch_size=100,
        learning_rate=4e-4,
        warmup_steps=0.1,  # of a cycle
        bf16=has_fast_bf16(),
        use_cpu=not has_accelerator(),
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        log_level="error",
        report_to=[],
        remove_unused_columns=False,
    )
    return {
        "args": args,
        "train_dataset": train,
        "eval_dataset": validation,
        "processing_class": tokenizer,
        "data_collator": collate,
        "compute_metrics": _accuracy,
    }


class _Bar(TrainerCallback):
    """A progress bar of the training, on stderr if that is a terminal."""

    def __init__(self, name: str, num_steps: int) -> None:
        self.name, self.num_steps = name, num_steps

    def on_train_begin(self, *args: object, **kwargs: object) -> None:
        size = {"ncols": 76, "nrows": 24}  # some terminals do not report theirs
        self.bar = tqdm(desc=self.name, total=self.num_steps, leave=False, disable=None, **size)

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        self.bar.update()

    def on_train_end(self, *args: object, **kwargs: object) -> None:
        self.bar.close()


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    chosen = np.asarray(prediction.predictions).argmax(-1)
    return {"accuracy": float((chosen == prediction.label_ids).mean())}
