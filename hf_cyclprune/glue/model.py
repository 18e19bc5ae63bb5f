"""Config, tokenizer and model of a GLUE run, from the Hub or a folder, never with remote code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from hf_cyclprune.checks import reason_of
from hf_cyclprune.glue.arguments import GlueArguments
from hf_cyclprune.glue.tasks import GlueTask
from hf_cyclprune.packing.weights import CONFIG_FAULTS

_SHIFTED = ("roberta", "xlm-roberta", "camembert", "mpnet", "xlm-roberta-xl", "data2vec-text")
_TOKENIZER = "a tokenizer"
logger = logging.get_logger(__name__)


def load_task_config(glue: GlueArguments, task: GlueTask) -> PretrainedConfig:
    """Load the model's config and give it the task's labels.

    A model that has the same labels keeps its own order of them.

    Raises:
        ValueError: there is no such model, or the Hub cannot be reached.
    """
    argument = "config_name" if glue.config_name else "model_name_or_path"
    config: PretrainedConfig = _load(AutoConfig, argument, glue)
    ids = label_ids(task, _own_labels(config))
    config.label2id = ids
    config.id2label = {i: name for name, i in sorted(ids.items(), key=lambda item: item[1])}
    config.problem_type = "regression" if task.is_regression else "single_label_classification"
    return config


def _own_labels(config: PretrainedConfig) -> dict[str, int]:
    """Return label -> id from the config's id2label, or its label2id if that names no labels."""
    labels: Any = config.id2label if isinstance(config.id2label, Mapping) else {}
    if all(str(name).startswith("LABEL_") for name in labels.values()):
        ids: Any = config.label2id if isinstance(config.label2id, Mapping) else {}
        return {str(name): int(i) for name, i in ids.items()}
    return {str(name): int(i) for i, name in labels.items()}


def label_ids(task: GlueTask, label2id: Mapping[str, int]) -> dict[str, int]:
    """Return label -> id for the task: the model's own ids if it has the same labels.

    >>> from hf_cyclprune.glue.tasks import TASKS
    >>> label_ids(TASKS["qnli"], {"LABEL_0": 0, "LABEL_1": 1})
    {'entailment': 0, 'not_entailment': 1}
    >>> label_ids(TASKS["qnli"], {"NOT_ENTAILMENT": 0, "ENTAILMENT": 1})
    {'entailment': 1, 'not_entailment': 0}
    """
    own = {name.lower(): i for name, i in label2id.items()}
    is_same = own.keys() == set(task.labels) and set(own.values()) == set(range(len(own)))
    return {name: own[name] if is_same else i for i, name in enumerate(task.labels)}


def load_tokenizer(glue: GlueArguments) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer.

    Raises:
        ValueError: there is no such tokenizer, it cannot pad, or the Hub cannot be reached.
    """
    argument = "tokenizer_name" if glue.tokenizer_name else "model_name_or_path"
    tokenizer: PreTrainedTokenizerBase = _load(AutoTokenizer, argument, glue, _TOKENIZER)
    words = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    if len(words) < 2:  # without files transformers makes one up, for some models with a space
        reason = "it knows no words, as if none was saved"
        raise _refuse(argument, glue, _TOKENIZER, reason, is_there=True)
    if tokenizer.pad_token is None:
        raise ValueError(
            f"{argument} must have a padding token; got '{getattr(glue, argument)}' without one. "
            "Choose a BERT-style model."
        )
    return tokenizer


def load_classifier(glue: GlueArguments, config: PretrainedConfig) -> PreTrainedModel:
    """Load the model in fp32 from safetensors, with a new head if it has none.

    Raises:
        ValueError: there is no such model, it has no safetensors, or its head has another size.
    """
    try:
        model: PreTrainedModel = _load(
            AutoModelForSequenceClassification,
            "model_name_or_path",
            glue,
            "a model in safetensors",
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=glue.ignore_mismatched_sizes,
        )
    except RuntimeError as error:
        if "size" not in str(error) and "mismatch" not in str(error):
            raise
        raise ValueError(
            f"model_name_or_path must fit {glue.task_name}, which has {config.num_labels} outputs; "
            f"got '{glue.model_name_or_path}', whose weights have other shapes. Pass "
            "--ignore_mismatched_sizes to give it a new head."
        ) from error
    return model


def _load(
    cls: Any, argument: str, glue: GlueArguments, what: str = "a model", **options: Any
) -> Any:
    """Load with a class of transformers and explain what fails in one line."""
    name = str(getattr(glue, argument))
    is_path = name.startswith((".", "/")) or Path(name).is_dir()
    if is_path and not list(Path(name).glob("*config.json")):
        raise ValueError(
            f"{_rule(argument, what)}; got '{name}', where no config.json is found. Check the path."
        )
    options |= {"cache_dir": glue.cache_dir, "revision": glue.model_revision}
    try:
        return cls.from_pretrained(name, trust_remote_code=False, **options)
    except (SafetensorError, *CONFIG_FAULTS) as error:
        raise _refuse(argument, glue, what, reason_of(error)) from error


def _refuse(
    argument: str, glue: GlueArguments, what: str, reason: str, *, is_there: bool = False
) -> ValueError:
    name = str(getattr(glue, argument))
    remedy = "Check its spelling and the network."
    if is_there or Path(name).is_dir():
        remedy = "Save it again, with save_pretrained."
        if what == _TOKENIZER:
            remedy = "Pass --tokenizer_name, or save one there."
    return ValueError(f"{_rule(argument, what)}; got '{name}': {reason}. {remedy}")


def _rule(argument: str, what: str) -> str:
    return f"{argument} must be a folder with {what} or the name of one on the Hub"


def check_length(
    glue: GlueArguments, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig
) -> int:
    """Return max_seq_length, or with a warning the model's own limit if that is lower."""
    longest: int = tokenizer.model_max_length
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        # RoBERTa and similar models number positions from pad_token_id + 1
        is_shifted = config.model_type in _SHIFTED
        longest = min(longest, positions - ((config.pad_token_id or 0) + 1 if is_shifted else 0))
    if glue.max_seq_length > longest:
        logger.warning(
            f"max_seq_length is {glue.max_seq_length}, but the model takes {longest} tokens at "
            "most. Longer examples are cut."
        )
    return min(glue.max_seq_length, longest)
