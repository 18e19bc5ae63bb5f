"""A tiny BERT from a config, and a task that it can learn: no network, no files."""

import gc
import os

# Before any Hugging Face import: nothing in the tests may reach for the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
from transformers.utils import logging

if find_spec("hypothesis") is not None:  # the tests on a GPU do without
    from hypothesis import settings

    settings.register_profile("same", derandomize=True)  # the same examples in every run
    settings.load_profile("same")

NUM_EXAMPLES = 64


@pytest.fixture(autouse=True, scope="session")
def _imports_are_no_garbage():
    """Every training begins with a gc.collect(), which need not look at all that was imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _one_thread():
    """Two cores are shared by the workers; and one thread is the same on every machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _verbosity():
    """A Trainer sets that of the whole process: no test leaves it to the next one."""
    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)


@pytest.fixture
def tiny_bert() -> Callable[..., BertForSequenceClassification]:
    """Builds the same two-layer BERT at every call: 12 target weights, 4096 in all."""

    def build(seed: int = 0, **options: Any) -> BertForSequenceClassification:
        torch.manual_seed(seed)
        config = BertConfig(
            **{
                "vocab_size": 40,
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                "max_position_embeddings": 16,
                "problem_type": "single_label_classification",
                **options,
            }
        )
        return BertForSequenceClassification(config)

    return build


@pytest.fixture(scope="session")
def examples() -> list[dict[str, Any]]:
    """Random token ids; the label says whether the first is below the second."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 40, (NUM_EXAMPLES, 8), generator=generator)
    return [{"input_ids": row, "labels": int(row[0] < row[1])} for row in ids]


@pytest.fixture
def arguments(tmp_path) -> Callable[..., dict[str, Any]]:
    """Keyword arguments of a quiet, short training run on the CPU, in a temporary folder."""

    def build(**options: Any) -> dict[str, Any]:
        return {
            "output_dir": str(tmp_path / "out"),
            "use_cpu": True,
            "max_steps": 40,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "save_strategy": "no",
            "logging_steps": 5,
            "report_to": [],
            "disable_tqdm": True,
            **options,
        }

    return build


@pytest.fixture
def train(tiny_bert, examples, arguments) -> Callable[..., Trainer]:
    """Trains a tiny BERT with a Trainer class and returns the Trainer; `args` are training args."""

    def run(
        cls: type[Trainer] = Trainer,
        *,
        args: dict[str, Any] | None = None,
        args_cls: type[TrainingArguments] = TrainingArguments,
        resume: Any = None,
        **options: Any,
    ) -> Trainer:
        if "model_init" not in options:
            options.setdefault("model", tiny_bert())
        options.setdefault("train_dataset", examples)
        options.setdefault("eval_dataset", examples)
        trainer = cls(args=args_cls(**arguments(**(args or {}))), **options)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run
