"""The YAML at the top of a card, under which the Hub files the model."""

import math
import re
from typing import Any

import yaml
from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import ModelCardData

from hf_cyclprune.card.card import Card
from hf_cyclprune.card.metrics import shown_metrics
from hf_cyclprune.card.text import first_text, texts

_METRIC_IDS = {
    **{name: name for name in ("accuracy", "f1", "precision", "recall", "spearmanr")},
    **{name: name for name in ("matthews_correlation", "mse", "mae", "perplexity")},
    "pearson": "pearsonr",
    "pearsonr": "pearsonr",
}
"""Name of a metric in a run -> on the Hub (https://hf.co/metrics)."""

_VARIANT = re.compile(r"_(mm|macro|micro|weighted)$")  # mm: the mismatched validation set of MNLI


def card_metadata(card: Card) -> dict[str, object]:
    """Return what the Hub shows and searches; what is not known is left out."""
    base, results = card.base_model, _eval_results(card)
    metric_ids = [r.metric_type for r in results if r.metric_type != "sparsity"]
    data = {
        "language": texts(card.card_options.get("language")),
        "license": first_text(card.card_options.get("license"), card.license),
        "library_name": "transformers",
        "pipeline_tag": card.task,
        "base_model": base,
        "base_model_relation": "finetune" if base else None,
        "datasets": card.dataset_ids,
        "metrics": list(dict.fromkeys(metric_ids)),
        "tags": _tags(card),
        # The Hub refuses a model-index with half a result.
        "model_name": card.title if results else None,
        "eval_results": results,
    }
    known = {key: value for key, value in data.items() if value not in (None, [])}
    make: Any = ModelCardData
    return dict(make(**known).to_dict())


def _tags(card: Card) -> list[str]:
    tags = ["hf_cyclprune", "generated_from_trainer"]
    if card.method.tag:
        tags.append(card.method.tag)
    if card.report.num_zeros:
        # Counted: a run towards 2:4 satisfies the pattern only at its end.
        is_unstructured = card.config.pattern == "unstructured" and not card.patterns
        tags += ["pruned", *card.patterns, *["unstructured"] * is_unstructured]
    return list(dict.fromkeys(tags + texts(card.card_options.get("tags"))))


def _eval_results(card: Card) -> list[EvalResult]:
    """Return the sparsity and the metrics that the Hub knows; none without one task and dataset."""
    metrics = {
        name: (_METRIC_IDS[_VARIANT.sub("", name)], value)
        for name, value in shown_metrics(card.record.metrics).items()
        if _VARIANT.sub("", name) in _METRIC_IDS
    }
    if not metrics or card.task is None or len(card.dataset_ids) != 1:
        return []
    metrics["sparsity of the target weights"] = ("sparsity", card.report.sparsity)
    args = first_text(card.card_options.get("dataset_args"))
    options: dict[str, Any] = {
        "task_type": card.task,
        "task_name": card.task.replace("-", " ").title(),
        "dataset_type": card.dataset_ids[0],
        "dataset_name": first_text(card.card_options.get("dataset"), card.dataset_ids),
        "dataset_config": card.dataset_part("config") or args,
        "dataset_split": card.dataset_part("split"),
        "dataset_args": args,
    }
    return [
        EvalResult(**options, metric_type=kind, metric_value=value, metric_name=name)
        for name, (kind, value) in metrics.items()
    ]


def to_yaml(data: dict[str, object]) -> str:
    """Write YAML in which every text is read as a text, by PyYAML and by the Hub.

    >>> to_yaml({"tags": ["2:4", "3e-5", "no"], "value": 0.5})
    "tags:\\n- '2:4'\\n- '3e-5'\\n- 'no'\\nvalue: 0.5\\n"
    """
    options: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": math.inf}
    return str(yaml.dump(data, Dumper=_Dumper, **options))


# PyYAML, and so ModelCardData.to_yaml, writes the text 3e-5 without quotes, which YAML 1.2 reads as
# a number. Here a text that begins like a number is quoted.
_Dumper: Any = type("_Dumper", (yaml.SafeDumper,), {})
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile("."), list("-+.0123456789"))
