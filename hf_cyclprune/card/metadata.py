"""The YAML at the top of a card, as the Hub wants it."""

import math
import re
from typing import Any

import yaml
from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import ModelCardData

from hf_cyclprune.card.facts import (
    Card,
    dataset_ids,
    dataset_part,
    find_base_model,
    find_method,
    find_patterns,
    find_task,
    find_title,
)
from hf_cyclprune.card.text import measured, texts

_METHOD_TAGS = {
    "cyclical": "cyclical-pruning",
    "rising": "cyclical-pruning",
    "gradual": "gradual-pruning",
    "one-shot": "one-shot-pruning",
}

_METRIC_IDS = {
    **{name: name for name in ("accuracy", "f1", "precision", "recall", "spearmanr")},
    **{name: name for name in ("matthews_correlation", "mse", "mae", "perplexity")},
    "pearson": "pearsonr",
    "pearsonr": "pearsonr",
}
"""Name of a metric in a run -> on the Hub (https://hf.co/metrics)."""

_VARIANT = re.compile(r"_(mm|macro|micro|weighted)$")  # mm: the mismatched validation set of MNLI


def make_metadata(facts: Card) -> dict[str, Any]:
    """As the Hub wants it; without what is not known."""
    said = facts.record.card
    base = find_base_model(facts)
    results = _eval_results(facts)
    metric_ids = [r.metric_type for r in results if r.metric_type != "sparsity"]
    data = {
        "language": texts(said.get("language")),
        "license": next(iter(texts(said.get("license")) + texts(facts.license)), None),
        "library_name": "transformers",
        "pipeline_tag": find_task(facts),
        "base_model": base,
        "base_model_relation": "finetune" if base else None,
        "datasets": dataset_ids(facts),
        "metrics": list(dict.fromkeys(metric_ids)),
        "tags": _tags(facts),
        "model_name": find_title(facts),
        "eval_results": results or None,
    }
    if not results:  # a model-index with half a result is refused by the Hub
        del data["model_name"]
    known: dict[str, Any] = {key: value for key, value in data.items() if value not in (None, [])}
    card: Any = ModelCardData(**known)
    return dict(card.to_dict())


def _tags(facts: Card) -> list[str]:
    report, config = facts.report, facts.config
    tags = ["hf_cyclprune", "generated_from_trainer"]
    if method := _METHOD_TAGS.get(find_method(facts)):
        tags.append(method)
    if report.num_zeros:
        # Counted: a run towards 2:4 is not there before its end.
        tags += ["pruned", *find_patterns(facts)]
    if report.num_zeros and config.pattern == "unstructured" and not find_patterns(facts):
        tags.append("unstructured")
    return list(dict.fromkeys(tags + texts(facts.record.card.get("tags"))))


def _eval_results(facts: Card) -> list[EvalResult]:
    """The metrics with a name on the Hub and the sparsity; none without one task and dataset."""
    said, task, ids = facts.record.card, find_task(facts), dataset_ids(facts)
    metrics = {
        name: (_METRIC_IDS[_VARIANT.sub("", name)], value)
        for name, value in measured(facts.record.metrics).items()
        if _VARIANT.sub("", name) in _METRIC_IDS
    }
    if not metrics or task is None or len(ids) != 1:
        return []
    metrics["sparsity of the target weights"] = ("sparsity", facts.report.sparsity)
    args = texts(said.get("dataset_args"))[:1]
    options: dict[str, Any] = {
        "task_type": task,
        "task_name": task.replace("-", " ").title(),
        "dataset_type": ids[0],
        "dataset_name": (texts(said.get("dataset")) or ids)[0],
        "dataset_config": dataset_part(facts, "config") or next(iter(args), None),
        "dataset_split": dataset_part(facts, "split"),
        "dataset_args": next(iter(args), None),
    }
    return [
        EvalResult(**options, metric_type=kind, metric_value=value, metric_name=name)
        for name, (kind, value) in metrics.items()
    ]


def to_yaml(data: dict[str, Any]) -> str:
    """YAML in which every text is read as a text, by PyYAML and by the Hub.

    >>> to_yaml({"tags": ["2:4", "3e-5", "no"]})
    "tags:\\n- '2:4'\\n- '3e-5'\\n- 'no'\\n"
    """
    options: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": math.inf}
    return str(yaml.dump(data, Dumper=_Dumper, **options))


def _represent(dumper: Any, text: str) -> Any:
    # PyYAML writes 3e-5 bare, which YAML 1.2 reads as a number.
    is_numeric = re.match(r"[-+.\d]", text) is not None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, "'" if is_numeric else None)


_Dumper: Any = type("_Dumper", (yaml.SafeDumper,), {})
_Dumper.add_representer(str, _represent)
