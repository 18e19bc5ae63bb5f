"""Write a model card, README.md of a pruned model, from what was counted and measured.

What is not known is left out: nothing is guessed, and no section is empty. The text is in
template.md.
"""

from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any

import jinja2

from hf_cyclprune.card import text
from hf_cyclprune.card.card import Card
from hf_cyclprune.card.metadata import card_metadata, to_yaml
from hf_cyclprune.card.metrics import accuracy_error, num_examples, shown_metrics
from hf_cyclprune.card.speed import describe_speed
from hf_cyclprune.config import PruningConfig, config_to_dict
from hf_cyclprune.methods import Plan
from hf_cyclprune.pruning.schedules import Schedule
from hf_cyclprune.reporting.numbers import count, number, percent, ratio
from hf_cyclprune.reporting.rows import Rows, cycle_rows, kind_rows, layer_rows

_MARK = "<!-- hf_cyclprune model card"
_BESIDE = {"criterion", "interval_steps", "lr_restarts"}
"""Settings that change nothing about how sparsity climbs and falls."""


def make_card(card: Card) -> str:
    """Write the text of README.md: metadata for the Hub, then what a person reads."""
    values = {**vars(card), **_derived(card), **_tables(card), **describe_speed(card)}
    body = _template().render(**values).rstrip()
    return f"---\n{to_yaml(card_metadata(card))}---\n\n{body}\n"


def is_own_card(readme: str) -> bool:
    """Return whether `make_card` wrote the text and nobody deleted the line that says so.

    >>> is_own_card("# My model")
    False
    """
    return any(line.startswith(_MARK) for line in readme.splitlines())


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters.update(percent=percent, ratio=ratio, number=number, count=count)
    environment.filters.update(text=text.escape, literal=text.literal, url=text.url)
    environment.filters.update(fenced=text.fenced, table=text.table)
    source = Path(__file__).with_name("template.md").read_text(encoding="utf-8")
    return environment.from_string(source)


def _derived(card: Card) -> dict[str, object]:
    """Return what the template needs beside the fields of the card."""
    record, cycles, target = card.record, card.report.cycles, card.config.target_sparsity
    recovered = [c.recovered_share_at_end for c in cycles if c.recovered_share_at_end is not None]
    return {
        "mark": _MARK,
        "card": card,
        **_method_words(card),
        "target": target,
        "is_at_target": replace(card.report, target_sparsity=target).is_at_target,
        "place": card.place,
        "datasets": _dataset_links(card),
        "accuracy_error": accuracy_error(record.metrics),
        "num_examples": num_examples(record.metrics),
        "has_recovery": any(c.mask_change is not None for c in cycles),
        "is_recovery_zero": bool(recovered) and not any(recovered),
        "command": record.command if text.one_line(record.command or "") else None,
        "config_code": _config_code(card.config),
        "hyperparameters": text.known_texts(record.hyperparameters),
        "versions": text.known_texts(record.versions),
    }


def _method_words(card: Card) -> dict[str, object]:
    """Return the sentence of the method, and the settings of the run that are not the method's.

    The sentence has the settings of the run unless one that it does not name would make it wrong.
    """
    settings: dict[str, Any] = dict(card.method.settings)
    own, plan = Plan(**settings), card.config.plan
    values = asdict(plan)
    changed = {name: value for name, value in values.items() if value != getattr(own, name)}
    sentence = card.method.sentence
    named = {name for _, name, _, _ in Formatter().parse(sentence) if name is not None}
    beside = _BESIDE if own.criterion == Plan.criterion else _BESIDE - {"criterion"}
    is_described = changed.keys() <= named | beside
    is_measured = not changed and card.config.pattern == "unstructured"
    values = {**values, "num_cycles": card.num_cycles} if is_described else asdict(own)
    values["reset_ratio"] = _reset_ratio(plan if is_described else own, card.config)
    shown = {n: ratio(value) if isinstance(value, float) else value for n, value in values.items()}
    return {
        "is_described": is_described,
        "finding": card.method.finding if is_measured else None,
        "method_sentence": sentence.format_map(shown),
        "changed_settings": [f"`{name}={value!r}`" for name, value in changed.items()],
        "never_falls": _falls(own) and not _falls(plan),
    }


def _reset_ratio(plan: Plan, config: PruningConfig) -> float:
    """Return the reset ratio of a plan at the target of a config."""
    return Schedule(config.target_sparsity or 0.0, 1, reset_ratio=plan.reset_ratio).reset


def _falls(plan: Plan) -> bool:
    """Return whether sparsity is lower after an edge between two cycles than before it."""
    names = {f.name for f in fields(Schedule)} & {f.name for f in fields(Plan)}
    options: dict[str, Any] = {name: getattr(plan, name) for name in names}
    sparsity = (1 + plan.initial_sparsity) / 2  # any target above the first one
    schedule = Schedule(sparsity, 100 * plan.num_cycles, **options)
    s = schedule.sparsity_at
    return any(s(edge + 1) < s(edge) for edge in schedule.edges[1:-1])


def _dataset_links(card: Card) -> list[str]:
    """Return the names of the data sets in Markdown, linked where each has an id on the Hub."""
    ids = card.dataset_ids
    names = [text.escape(name) for name in text.texts(card.card_options.get("dataset")) or ids]
    if len(ids) != len(names):
        return names
    links = [f"https://huggingface.co/datasets/{name}" for name in ids]
    return [f"[{name}]({link})" for name, link in zip(names, links, strict=True)]


def _config_code(config: PruningConfig) -> str:
    """Write the config as Python: its method, and all options that are not the default.

    >>> _config_code(PruningConfig(pattern="2:4"))
    "PruningConfig(method='rising', pattern='2:4')"
    """
    defaults = {f.name: f.default for f in fields(PruningConfig)}
    options = [
        f"{name}={value!r}"
        for name, value in config_to_dict(config).items()
        if value != defaults[name] or name == "method"
    ]
    return f"PruningConfig({', '.join(options)})"


def _tables(card: Card) -> dict[str, Rows]:
    """Return the rows of each table under the name that the template has for it."""
    metrics, dense = shown_metrics(card.record.metrics), shown_metrics(card.record.dense_metrics)
    sizes = {"dense": card.dense_bytes, "packed": card.packed_bytes if card.packed_folder else None}
    return {
        "metrics": [
            {"metric": name, "dense": number(dense.get(name)), "pruned": number(value)}
            for name, value in metrics.items()
        ],
        "kinds": kind_rows(card.report),
        "layers": layer_rows(card.report),
        "cycles": cycle_rows(card.report.cycles) if card.config.plan.num_cycles > 1 else [],
        "sizes": [
            {"weights": name, "bytes": count(size), "MB": f"{size / 1e6:,.1f}"}
            for name, size in sizes.items()
            if size is not None
        ],
    }
