"""The model card: README.md of a pruned model, from what was counted and measured and nothing else.

What is not known is absent: no fact is guessed, and no section stands empty. The words are in
template.md; here are the numbers, and what keeps text of others from breaking the YAML or a table.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import transformers
import yaml
from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import ModelCardData
from transformers import PreTrainedModel

from hf_cyclprune.config import PruningConfig, config_to_dict
from hf_cyclprune.reporting.record import RunRecord
from hf_cyclprune.reporting.report import SparsityReport

_MARK = "<!-- hf_cyclprune model card"

_METHOD_TAGS = {
    "cyclical": "cyclical-pruning",
    "rising": "cyclical-pruning",
    "gradual": "gradual-pruning",
    "one-shot": "one-shot-pruning",
}

_TASKS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMultipleChoice": "multiple-choice",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
}
"""End of a class's name -> the Hub's name of its task; AutoModel + this end is its Auto class."""

_METRIC_IDS = {
    **{name: name for name in ("accuracy", "f1", "precision", "recall", "spearmanr")},
    **{name: name for name in ("matthews_correlation", "mse", "mae", "perplexity")},
    "pearson": "pearsonr",
    "pearsonr": "pearsonr",
}
"""Name of a metric in a run -> on the Hub (https://hf.co/metrics)."""

_VARIANT = re.compile(r"_(mm|macro|micro|weighted)$")  # mm: the mismatched validation set of MNLI

_NO_METRIC = re.compile(
    r"^(train|predict)_|(^|_)(runtime|per_second|time|samples|epoch|step|cycle|sparsity|flos)(_mm)?$"
)


@dataclass(frozen=True)
class CardFacts:
    """Everything that the card may say; what is None or empty is absent from it."""

    model_name: str
    report: SparsityReport
    """Counted in the weights that are uploaded."""
    config: PruningConfig
    record: RunRecord
    repo_id: str | None = None
    """Where the weights will be found on the Hub."""
    model_class: str | None = None
    """Such as "BertForSequenceClassification"."""
    has_tokenizer: bool = False
    """Whether a tokenizer lies beside the weights."""
    num_parameters: int | None = None
    """Of the whole model, counted."""
    dense_bytes: int | None = None
    """Of the weights on disk."""
    packed_bytes: int | None = None
    """Of the packed weights on disk."""
    packed_folder: str | None = None
    """Where in the repository a packed copy is, if there is one."""
    dense_metrics: Mapping[str, float] | None = None
    """Measured on a dense run of the same task: `eval_accuracy`, .."""
    pictures: Mapping[str, str] = field(default_factory=dict)
    """ "schedule", "density", "recovery" -> path in the repository."""
    license: str | None = None
    """Of the base model; what the caller of create_model_card said goes before it."""


def make_card(facts: CardFacts) -> str:
    """The text of README.md: metadata for the Hub, then what a person reads."""
    return f"---\n{_to_yaml(_metadata(facts))}---\n\n{_body(facts)}"


def is_own_card(text: str) -> bool:
    """Whether `make_card` wrote it and nobody deleted the line that says so.

    >>> is_own_card("# My model")
    False
    """
    return any(line.startswith(_MARK) for line in text.splitlines())


# The metadata


def _metadata(facts: CardFacts) -> dict[str, Any]:
    """As the Hub wants it; without what is not known."""
    said = facts.record.card
    base = _base_model(facts)
    results = _eval_results(facts)
    measured = [r.metric_type for r in results if r.metric_type != "sparsity"]
    data = {
        "language": _texts(said.get("language")),
        "license": next(iter(_texts(said.get("license")) + _texts(facts.license)), None),
        "library_name": "transformers",
        "pipeline_tag": _task(facts),
        "base_model": base,
        "base_model_relation": "finetune" if base else None,
        "datasets": _dataset_ids(facts),
        "metrics": list(dict.fromkeys(measured)),
        "tags": _tags(facts),
        "model_name": _title(facts),
        "eval_results": results or None,
    }
    if not results:  # a model-index with half a result is refused by the Hub
        del data["model_name"]
    known: dict[str, Any] = {key: value for key, value in data.items() if value not in (None, [])}
    card: Any = ModelCardData(**known)
    return dict(card.to_dict())


def _tags(facts: CardFacts) -> list[str]:
    report, config = facts.report, facts.config
    tags = ["hf_cyclprune", "generated_from_trainer"]
    if method := _METHOD_TAGS.get(_method(facts)):
        tags.append(method)
    if report.num_zeros:
        # Counted: a run towards 2:4 is not there before its end.
        tags += ["pruned", *_patterns(facts)]
    if report.num_zeros and config.pattern == "unstructured" and not _patterns(facts):
        tags.append("unstructured")
    return list(dict.fromkeys(tags + _texts(facts.record.card.get("tags"))))


def _patterns(facts: CardFacts) -> list[str]:
    """The n:m patterns that the run aimed at, or kept, and that all target weights satisfy."""
    config, found = facts.config, facts.report.patterns
    return [name for name in found if config.method == "hold" or name == config.pattern]


def _eval_results(facts: CardFacts) -> list[EvalResult]:
    """The metrics with a name on the Hub and the sparsity; none without one task and dataset."""
    said, task, ids = facts.record.card, _task(facts), _dataset_ids(facts)
    metrics = {
        name: (_METRIC_IDS[_VARIANT.sub("", name)], value)
        for name, value in _measured(facts.record.metrics).items()
        if _VARIANT.sub("", name) in _METRIC_IDS
    }
    if not metrics or task is None or len(ids) != 1:
        return []
    metrics["sparsity of the target weights"] = ("sparsity", facts.report.sparsity)
    args = _texts(said.get("dataset_args"))[:1]
    options: dict[str, Any] = {
        "task_type": task,
        "task_name": task.replace("-", " ").title(),
        "dataset_type": ids[0],
        "dataset_name": (_texts(said.get("dataset")) or ids)[0],
        "dataset_config": _dataset_part(facts, "config") or next(iter(args), None),
        "dataset_split": _dataset_part(facts, "split"),
        "dataset_args": next(iter(args), None),
    }
    return [
        EvalResult(**options, metric_type=kind, metric_value=value, metric_name=name)
        for name, (kind, value) in metrics.items()
    ]


def _task(facts: CardFacts) -> str | None:
    """What the caller said, or what the class is for."""
    said = _texts(facts.record.card.get("tasks"))
    found = [task for end, task in _TASKS.items() if (facts.model_class or "").endswith(end)]
    return next(iter(said + found), None)


def _base_model(facts: CardFacts) -> str | None:
    said = _texts(facts.record.card.get("finetuned_from"))
    return next(filter(_is_repo_id, said + _texts(facts.record.base_model)), None)


def _dataset_ids(facts: CardFacts) -> list[str]:
    return list(filter(_is_repo_id, _texts(facts.record.card.get("dataset_tags"))))


def _dataset_part(facts: CardFacts, part: str) -> str | None:
    """The "config" or the "split" of the only dataset."""
    about = facts.record.card.get("dataset_metadata")
    if isinstance(about, list | tuple):
        about = about[0] if len(about) == 1 else None
    return next(iter(_texts(about.get(part))), None) if isinstance(about, Mapping) else None


def _is_repo_id(name: str) -> bool:
    """Whether the Hub takes it as the id of a model or a data set; a path is none.

    >>> [_is_repo_id(name) for name in ("bert", "google-bert/bert", "/home/bert", "./bert", "a b")]
    [True, True, False, False, False]
    """
    return (
        re.fullmatch(r"(?!.*(--|\.\.))(\w[\w.-]*\b/)?\w[\w.-]{0,95}\b", name, re.ASCII) is not None
    )


def _title(facts: CardFacts) -> str:
    return _line(facts.model_name) or _line(facts.repo_id or "") or "Pruned model"


def _to_yaml(data: dict[str, Any]) -> str:
    """YAML in which every text is read as a text, by PyYAML and by the Hub.

    >>> _to_yaml({"tags": ["2:4", "3e-5", "no"]})
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


# The body


def _body(facts: CardFacts) -> str:
    """The template, filled in."""
    text = _template().render(
        **{f.name: getattr(facts, f.name) for f in dataclasses.fields(facts)},
        **_names(facts),
        **_tables(facts),
    )
    return text.rstrip() + "\n"


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    numbers = {"percent": _percent, "ratio": _ratio, "number": _number, "count": "{:,}".format}
    texts = {"text": _text, "literal": _literal, "url": _url, "fenced": _fenced, "table": _table}
    environment.filters.update(numbers, **texts)
    source = Path(__file__).with_name("template.md").read_text(encoding="utf-8")
    return environment.from_string(source)


def _names(facts: CardFacts) -> dict[str, Any]:
    """What the template says of the model and its run, beside the facts themselves."""
    config, record = facts.config, facts.record
    target = config.target_sparsity
    asked = dataclasses.replace(facts.report, target_sparsity=target)
    one_climb = config.num_cycles == 1 or config.envelope == "rising"
    return {
        "mark": _MARK,
        "title": _title(facts),
        "base": _base_model(facts),
        "datasets": _dataset_links(facts),
        "method": _method(facts),
        "patterns": _patterns(facts),
        "target": target,
        "is_at_target": asked.is_at_target,
        "span": "run" if one_climb else f"first of {config.num_cycles} cycles",
        "auto_class": _auto_class(facts.model_class),
        "place": _line(facts.repo_id or "") or f"path/to/{_title(facts)}",
        "split": _dataset_part(facts, "split"),
        "accuracy_error": _accuracy_error(record.metrics),
        "num_examples": _num_examples(record.metrics),
        "has_recovery": any(c.mask_change is not None for c in facts.report.cycles),
        "is_recovery_zero": _is_recovery_zero(facts),
        "command": record.command if _line(record.command or "") else None,
        "config_code": _config_code(config),
        "hyperparameters": _said(record.hyperparameters),
        "versions": _said(record.versions),
    }


def _method(facts: CardFacts) -> str:
    """What the schedule does, whatever its options are called: cyclical if sparsity ever falls."""
    config = facts.config
    if config.method == "hold":
        return "hold"
    schedule = config.build_schedule(max(facts.record.total_steps, config.num_cycles))
    s = schedule.sparsity_at
    if any(s(edge + 1) < s(edge) for edge in schedule.edges[1:-1]):
        return "rising" if schedule.is_rising else "cyclical"
    is_at_once = config.ramp_ratio == 0 or config.ramp in ("constant", "step")
    return "one-shot" if is_at_once else "gradual"


def _auto_class(model_class: str | None) -> str | None:
    """The class to load it with; None where that is not one of transformers'."""
    cls = getattr(transformers, model_class or "", None)
    if model_class is None or not (isinstance(cls, type) and issubclass(cls, PreTrainedModel)):
        return None
    end = next((end for end in _TASKS if model_class.endswith(end)), None)
    return model_class if end is None else f"AutoModel{end}"


def _dataset_links(facts: CardFacts) -> list[str]:
    """Markdown: the names of the datasets, linked where each has an id on the Hub."""
    ids = _dataset_ids(facts)
    names = _texts(facts.record.card.get("dataset")) or ids
    if len(ids) != len(names):
        return [_text(name) for name in names]
    links = [f"https://huggingface.co/datasets/{name}" for name in ids]
    return [f"[{_text(name)}]({link})" for name, link in zip(names, links, strict=True)]


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
    value: Any = metrics.get("eval_samples")
    return int(value) if _is_number(value) and value > 0 else None


def _accuracy_error(metrics: Mapping[str, Any]) -> float | None:
    """Binomial standard error of the accuracy."""
    accuracy, count = _measured(metrics).get("accuracy"), _num_examples(metrics)
    if accuracy is None or count is None or not 0 <= accuracy <= 1:
        return None
    return math.sqrt(accuracy * (1 - accuracy) / count)


def _is_recovery_zero(facts: CardFacts) -> bool:
    shares = [cycle.recovered_share_at_end for cycle in facts.report.cycles]
    known = [share for share in shares if share is not None]
    return bool(known) and not any(known)


# The tables


Rows = list[dict[str, str | None]]


def _tables(facts: CardFacts) -> dict[str, Any]:
    """Rows under the names that the template has for them."""
    metrics = _metric_rows(facts)
    return {
        "metrics": metrics,
        "has_dense": any(row["dense"] for row in metrics),
        "kinds": _group_rows("matrix", facts.report.by_kind()),
        "layers": _group_rows("layer", facts.report.by_layer()),
        "cycles": _cycle_rows(facts),
        "sizes": _size_rows(facts),
    }


def _metric_rows(facts: CardFacts) -> Rows:
    dense = _measured(facts.dense_metrics or {})
    return [
        {"metric": name, "dense": _number(dense.get(name)), "pruned": _number(value)}
        for name, value in _measured(facts.record.metrics).items()
    ]


def _group_rows(title: str, groups: Mapping[str, SparsityReport]) -> Rows:
    return [
        {
            title: "outside of the blocks" if name == "none" else name,
            "weights": f"{group.num_weights:,}",
            "zeros": f"{group.num_zeros:,}",
            "sparsity": _percent(group.sparsity),
            "n:m": ", ".join(group.patterns) or None,
        }
        for name, group in groups.items()
    ]


def _cycle_rows(facts: CardFacts) -> Rows:
    """One for each finished cycle; none where there is but one to come."""
    if facts.config.num_cycles == 1 or facts.config.method == "hold":
        return []
    metrics = [_measured(cycle.metrics) for cycle in facts.report.cycles]
    names = dict.fromkeys(name for measured in metrics for name in measured)
    return [
        {
            "cycle": f"{cycle.cycle:,}",
            "last step": f"{cycle.end_step:,}",
            "sparsity": _percent(cycle.sparsity),
            **{name: _number(measured.get(name)) for name in names},
            "recovered at the edge": _percent(cycle.recovered_share_at_edge),
            "recovered at the end": _percent(cycle.recovered_share_at_end),
            "mask change": _percent(cycle.mask_change),
        }
        for cycle, measured in zip(facts.report.cycles, metrics, strict=True)
    ]


def _size_rows(facts: CardFacts) -> Rows:
    packed = facts.packed_bytes if facts.packed_folder else None
    sizes = {"dense": facts.dense_bytes, "packed": packed}
    return [
        {"weights": name, "bytes": f"{size:,}", "MB": f"{size / 1e6:,.1f}"}
        for name, size in sizes.items()
        if size is not None
    ]


def _table(rows: Rows) -> str:
    """Markdown; a column in which nothing is known is left out.

    >>> print(_table([{"a": "x|y", "b": None}]))
    | a |
    |---|
    | x\\|y |
    """
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    lines = [names, *([row[name] or "-" for name in names] for row in rows)]
    text = ["| " + " | ".join(map(_text, line)) + " |" for line in lines]
    text.insert(1, "|" + "|".join(["---"] + ["---:"] * (len(names) - 1)) + "|")
    return "\n".join(text)


# Values -> text


def _measured(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What was measured of the model's answers: no times, no counts, no nan."""
    named = {name.removeprefix("eval_"): value for name, value in metrics.items()}
    return {
        line: float(value)
        for name, value in named.items()
        if (line := _line(name)) and not _NO_METRIC.search(line) and _is_number(value)
    }


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return math.isfinite(value)


def _number(value: float | None) -> str | None:
    if value is None:
        return None
    is_usual = value == 0 or 1e-3 <= abs(value) < 1e6
    return f"{value:.4f}" if is_usual else f"{value:.4g}"


def _percent(share: float | None) -> str | None:
    """With so many digits that only 0 is 0% and only 1 is 100%.

    >>> _percent(0.8), _percent(0.0), _percent(0.999996)
    ('80.00%', '0.00%', '99.9996%')
    """
    if share is None:
        return None
    digits = 2
    while 0 < share < 1 and digits < 12 and float(f"{share:.{digits + 2}f}") in (0.0, 1.0):
        digits += 1
    return f"{share:.{digits}%}"


def _ratio(share: float) -> str:
    return f"{100 * share:g}%"


def _said(values: Mapping[str, Any]) -> dict[str, str]:
    """Names and values as lines, without those that say nothing."""
    lines = {_line(name): _line(value) for name, value in values.items() if value is not None}
    return {name: value for name, value in lines.items() if value not in ("", "nan", "inf", "-inf")}


def _texts(value: Any) -> list[str]:
    """None, a value or several, as a list of lines."""
    several = value if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    return [line for item in several if item is not None and (line := _line(item))]


def _line(value: Any) -> str:
    """Printable text on one line."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return " ".join(text.split())


def _text(value: Any) -> str:
    """Markdown that shows the value as it is, in a table too.

    >>> print(_text("a|b *c* d_e <f>"))
    a\\|b \\*c\\* d_e \\<f\\>
    """
    return re.sub(r"[\\`*{}\[\]<>|#~$&]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", _line(value))


def _literal(value: str) -> str:
    """Python code."""
    return json.dumps(_line(value), ensure_ascii=False)


def _url(path: str) -> str:
    return quote(path.replace("\\", "/"), safe="/", errors="replace")


def _fenced(text: str, language: str) -> str:
    """A block of code whose fence is longer than any in the text."""
    lines = [line for line in text.splitlines() if line.strip()]
    code = "\n".join("".join(c if c.isprintable() else " " for c in line) for line in lines)
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", code)), 0)
    return f"{fence}{language}\n{code}\n{fence}"
