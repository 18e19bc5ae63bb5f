"""The demo: one model fine-tuned twice at equal steps, dense and pruned in cycles."""

import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from datasets.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging

from hf_cyclprune.config import PruningConfig
from hf_cyclprune.demo.model import find_model
from hf_cyclprune.demo.sentences import LABELS, make_task
from hf_cyclprune.reporting.report import SparsityReport
from hf_cyclprune.training.device import has_accelerator, has_fast_bf16
from hf_cyclprune.training.trainer import PruningTrainer

NUM_STEPS = 200
BATCH_SIZE = 32
MAX_TOKENS = 32
NUM_TRAIN = 4000
NUM_VALIDATION = 1200
LEARNING_RATE = 3e-4
PRUNING = PruningConfig(sparsity=0.8, num_cycles=2)

_HEADER = """\
Task: is the word order of a sentence intact, or was its first word swapped with another?
{} training and {} validation sentences from the documentation of this Python's
standard library, different modules for the two. Chance is 0.5; knowing which words begin a
sentence gives about 0.75.
Model: all-MiniLM-L6-v2. {} steps of {} sentences for each row.
"""


@dataclass(frozen=True)
class DemoRow:
    """One fine-tuned model."""

    name: str
    accuracy: float
    """On the validation sentences, in [0, 1]; chance is 0.5."""
    sparsity: float
    """Counted in the target weights."""
    seconds: float
    """Of training, without evaluation."""

    @property
    def standard_error(self) -> float:
        """Of the accuracy, from the number of validation sentences."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / NUM_VALIDATION)

    def __str__(self) -> str:
        accuracy = f"{self.accuracy:.4f} +- {self.standard_error:.4f}"
        return f"{self.name:<16}  {accuracy:<18}  {self.sparsity:>8.4%}  {self.seconds:>7.0f}"


def run_demo(output_dir: str | None = None, num_steps: int = NUM_STEPS) -> list[DemoRow]:
    """Train, print and check; return the rows: dense, pruned, and the pruned one reloaded.

    Args:
        output_dir: where the pruned model is kept; a temporary folder, removed, if None.
        num_steps: optimizer steps of each training.

    Raises:
        ValueError: the model's package is missing or altered; output_dir holds files.
        RuntimeError: the reloaded model is not the one that was saved.
    """
    _check_output_dir(output_dir)
    with _quiet():
        return _run(output_dir, num_steps)


def _run(output_dir: str | None, num_steps: int) -> list[DemoRow]:
    folder = find_model()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    train, validation = (
        split.map(lambda rows: _tokenize(tokenizer, rows), batched=True, remove_columns=["text"])
        for split in make_task(NUM_TRAIN, NUM_VALIDATION)
    )
    print(_HEADER.format(len(train), len(validation), num_steps, BATCH_SIZE), flush=True)
    print(f"{'':<16}  {'accuracy':<18}  sparsity  seconds", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        runner = _Runner(folder, tokenizer, train, validation, num_steps, Path(temporary))
        dense, _ = runner.row("dense", None)
        pruned, trainer = runner.row("cyclical pruning", PRUNING)
        kept = Path(output_dir) if output_dir is not None else Path(temporary) / "pruned"
        trainer.save_model(str(kept))
        tokenizer.save_pretrained(kept)
        reloaded = runner.reloaded_row(kept)
        rows = [dense, pruned, reloaded]
    if (reloaded.accuracy, reloaded.sparsity) != (pruned.accuracy, pruned.sparsity):
        raise RuntimeError(f"the reloaded model must equal the saved one; got {reloaded}")
    print(f"\n{trainer.sparsity_report()}")
    if output_dir is not None:
        print(f"\nSaved to {output_dir}; loads with AutoModelForSequenceClassification.")
    return rows


def _check_output_dir(output_dir: str | None) -> None:
    if output_dir is not None and Path(output_dir).exists() and any(Path(output_dir).iterdir()):
        raise ValueError(
            f"output_dir must be new or empty; got '{output_dir}', which holds files. "
            "Name another folder."
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing but the demo's own lines; afterwards everything is as talkative as before."""
    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    has_data_bars = not are_progress_bars_disabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        if has_data_bars:
            enable_progress_bars()


def _tokenize(tokenizer: PreTrainedTokenizerBase, rows: dict[str, Any]) -> dict[str, Any]:
    encoded = tokenizer(rows["text"], truncation=True, max_length=MAX_TOKENS)
    return {**encoded, "labels": rows["label"]}


@dataclass(frozen=True)
class _Runner:
    """What all rows share."""

    model_folder: Path
    tokenizer: PreTrainedTokenizerBase
    train: Dataset
    validation: Dataset
    num_steps: int
    temporary: Path

    def row(self, name: str, config: PruningConfig | None) -> tuple[DemoRow, PruningTrainer]:
        """Fine-tune, evaluate, count and print."""
        trainer = PruningTrainer(
            model=_load(self.model_folder), pruning_config=config, **self._options()
        )
        trainer.remove_callback(PrinterCallback)
        start = time.perf_counter()
        trainer.train()
        return self._finish(name, trainer, time.perf_counter() - start), trainer

    def reloaded_row(self, folder: Path) -> DemoRow:
        """Evaluate the model in `folder` with nothing but transformers."""
        trainer = Trainer(model=_load(folder), **self._options())
        trainer.remove_callback(PrinterCallback)
        return self._finish("  reloaded", trainer, 0.0)

    def _finish(self, name: str, trainer: Trainer, seconds: float) -> DemoRow:
        assert trainer.model is not None
        accuracy = trainer.evaluate()["eval_accuracy"]
        sparsity = SparsityReport.measure(trainer.model).sparsity
        row = DemoRow(name, accuracy, sparsity, seconds)
        print(row, flush=True)
        return row

    def _options(self) -> dict[str, Any]:
        """The arguments of every Trainer."""
        args = TrainingArguments(
            output_dir=str(self.temporary / "trainer"),
            max_steps=self.num_steps,
            per_device_train_batch_size=BATCH_SIZE,
            per_device_eval_batch_size=100,
            learning_rate=LEARNING_RATE,
            warmup_steps=0.1,  # of a cycle
            bf16=has_fast_bf16(),
            use_cpu=not has_accelerator(),
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
            log_level="error",
            report_to=[],
        )
        return {
            "args": args,
            "train_dataset": self.train,
            "eval_dataset": self.validation,
            "data_collator": DataCollatorWithPadding(self.tokenizer),
            "compute_metrics": _accuracy,
        }


def _load(folder: Path) -> PreTrainedModel:
    """The model with a head for the two labels; what is printed about a new head is silenced."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, id2label=dict(enumerate(LABELS))
    )
    return model


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    chosen = np.asarray(prediction.predictions).argmax(-1)
    return {"accuracy": float((chosen == prediction.label_ids).mean())}
