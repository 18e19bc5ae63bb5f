"""The model card: README.md of a pruned model, from what was counted and measured and nothing else.

What is not known is absent: no fact is guessed, and no section stands empty. The words are in
template.md.
"""

import dataclasses
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import transformers
from transformers import PreTrainedModel

from hf_cyclprune.card.facts import (
    TASKS,
    Card,
    dataset_ids,
    dataset_part,
    find_base_model,
    find_method,
    find_patterns,
    find_title,
    is_of_first_cycle,
)
from hf_cyclprune.card.metadata import make_metadata, to_yaml
from hf_cyclprune.card.tables import make_tables
from hf_cyclprune.card.text import (
    escape,
    fenced,
    is_number,
    literal,
    measured,
    number,
    one_line,
    percent,
    ratio,
    said,
    table,
    texts,
    url,
)
from hf_cyclprune.config import PruningConfig, config_to_dict

_MARK = "<!-- hf_cyclprune model card"


def make_card(facts: Card) -> str:
    """The text of README.md: metadata for the Hub, then what a person reads."""
    return f"---\n{to_yaml(make_metadata(facts))}---\n\n{_body(facts)}"


def is_own_card(text: str) -> bool:
    """Whether `make_card` wrote it and nobody deleted the line that says so.

    >>> is_own_card("# My model")
    False
    """
    return any(line.startswith(_MARK) for line in text.splitlines())


def _body(facts: Card) -> str:
    """The template, filled in."""
    text = _template().render(
        **{f.name: getattr(facts, f.name) for f in dataclasses.fields(facts)},
        **_names(facts),
        **make_tables(facts),
    )
    return text.rstrip() + "\n"


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    numbers = {"percent": percent, "ratio": ratio, "number": number, "count": "{:,}".format}
    words = {"text": escape, "literal": literal, "url": url, "fenced": fenced, "table": table}
    environment.filters.update(numbers, **words)
    source = Path(__file__).with_name("template.md").read_text(encoding="utf-8")
    return environment.from_string(source)


def _names(facts: Card) -> dict[str, Any]:
    """What the template says of the model and its run, beside the facts themselves."""
    config, record = facts.config, facts.record
    target = config.target_sparsity
    asked = dataclasses.replace(facts.report, target_sparsity=target)
    one_climb = config.plan.num_cycles == 1 or config.plan.levels == "rising"
    return {
        "mark": _MARK,
        "title": find_title(facts),
        "base": find_base_model(facts),
        "datasets": _dataset_links(facts),
        "method": find_method(facts),
        "patterns": find_patterns(facts),
        "plan": config.plan,
        "target": target,
        "is_at_target": asked.is_at_target,
        "span": "run" if one_climb else f"first of {config.plan.num_cycles} cycles",
        "auto_class": _auto_class(facts.model_class),
        "place": one_line(facts.repo_id or "") or f"path/to/{find_title(facts)}",
        "split": dataset_part(facts, "split"),
        "accuracy_error": _accuracy_error(record.metrics),
        "num_examples": _num_examples(record.metrics),
        "is_of_first_cycle": is_of_first_cycle(facts),
        "has_recovery": any(c.mask_change is not None for c in facts.report.cycles),
        "is_recovery_zero": _is_recovery_zero(facts),
        "command": record.command if one_line(record.command or "") else None,
        "config_code": _config_code(config),
        "hyperparameters": said(record.hyperparameters),
        "versions": said(record.versions),
    }


def _auto_class(model_class: str | None) -> str | None:
    """The class to load it with; None where that is not one of transformers'."""
    cls = getattr(transformers, model_class or "", None)
    if model_class is None or not (isinstance(cls, type) and issubclass(cls, PreTrainedModel)):
        return None
    end = next((end for end in TASKS if model_class.endswith(end)), None)
    return model_class if end is None else f"AutoModel{end}"


def _dataset_links(facts: Card) -> list[str]:
    """Markdown: the names of the datasets, linked where each has an id on the Hub."""
    ids = dataset_ids(facts)
    names = texts(facts.record.card.get("dataset")) or ids
    if len(ids) != len(names):
        return [escape(name) for name in names]
    links = [f"https://huggingface.co/datasets/{name}" for name in ids]
    return [f"[{escape(name)}]({link})" for name, link in zip(names, links, strict=True)]


def _config_code(config: PruningConfig) -> str:
    """The config as Python, without what is the default; the cycles always.

    >>> _config_code(PruningConfig(pattern="2:4"))
    "PruningConfig(pattern='2:4', num_cycles=4)"
    """
    defaults = {f.name: f.default for f in dataclasses.fields(PruningConfig)}
    is_shown = {"num_cycles": config.method != "hold"}
    options = [
        f"{name}={value!r}"
        for name, value in config_to_dict(config).items()
        if value != defaults[name] or is_shown.get(name)
    ]
    return f"PruningConfig({', '.join(options)})"


def _num_examples(metrics: Mapping[str, Any]) -> int | None:
    """None where there are two sets, as for MNLI: the metrics of each are of its own number."""
    if any(name.startswith("eval_") and name.endswith("_mm") for name in metrics):
        return None
    value: Any = metrics.get("eval_samples")
    return int(value) if is_number(value) and value > 0 else None


def _accuracy_error(metrics: Mapping[str, Any]) -> float | None:
    """Binomial standard error of the accuracy."""
    accuracy, count = measured(metrics).get("accuracy"), _num_examples(metrics)
    if accuracy is None or count is None or not 0 <= accuracy <= 1:
        return None
    return math.sqrt(accuracy * (1 - accuracy) / count)


def _is_recovery_zero(facts: Card) -> bool:
    shares = [cycle.recovered_share_at_end for cycle in facts.report.cycles]
    known = [share for share in shares if share is not None]
    return bool(known) and not any(known)
