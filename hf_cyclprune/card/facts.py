"""What a card may say, and what follows from it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from hf_cyclprune.card.text import one_line, texts
from hf_cyclprune.config import PruningConfig
from hf_cyclprune.reporting.report import SparsityReport
from hf_cyclprune.reporting.run import RunRecord

TASKS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMultipleChoice": "multiple-choice",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
}
"""End of a class's name -> the Hub's name of its task; AutoModel + this end is its Auto class."""


@dataclass(frozen=True)
class Card:
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
    pictures: Mapping[str, str] = field(default_factory=dict)
    """ "schedule", "density", "recovery" -> path in the repository."""
    license: str | None = None
    """Of the base model; what the caller of create_model_card said goes before it."""


def find_method(facts: Card) -> str:
    """What was done to the weights, whatever the options are called.

    Cyclical if sparsity fell before they stood; those of a first cycle have only seen a climb.
    """
    config, record = facts.config, facts.record
    if config.method == "hold":
        return "hold"
    total_steps = record.total_steps or 100 * config.plan.num_cycles  # if no run is known
    schedule = config.build_schedule(max(total_steps, config.plan.num_cycles))
    s, last = schedule.sparsity_at, record.weights_step or schedule.total_steps
    if any(s(edge + 1) < s(edge) for edge in schedule.edges[1:-1] if edge < last):
        return "rising" if schedule.levels == "rising" else "cyclical"
    is_at_once = config.plan.ramp_ratio == 0 or config.plan.ramp in ("constant", "step")
    return "one-shot" if is_at_once else "gradual"


def is_of_first_cycle(facts: Card) -> bool:
    """Whether more cycles were planned than these weights have seen the beginning of: one."""
    config, record = facts.config, facts.record
    if config.method == "hold" or not record.weights_step or not record.total_steps:
        return False
    schedule = config.build_schedule(max(record.total_steps, config.plan.num_cycles))
    return schedule.num_cycles > 1 and record.weights_step <= schedule.edges[1]


def find_patterns(facts: Card) -> list[str]:
    """The n:m patterns that the run aimed at, or kept, and that all target weights satisfy."""
    config, found = facts.config, facts.report.patterns
    return [name for name in found if config.method == "hold" or name == config.pattern]


def find_task(facts: Card) -> str | None:
    """What the caller said, or what the class is for."""
    said = texts(facts.record.card.get("tasks"))
    found = [task for end, task in TASKS.items() if (facts.model_class or "").endswith(end)]
    return next(iter(said + found), None)


def find_base_model(facts: Card) -> str | None:
    """Its id on the Hub; None if it has none."""
    said = texts(facts.record.card.get("finetuned_from"))
    return next(filter(_is_repo_id, said + texts(facts.record.base_model)), None)


def dataset_ids(facts: Card) -> list[str]:
    """Those on the Hub."""
    return list(filter(_is_repo_id, texts(facts.record.card.get("dataset_tags"))))


def dataset_part(facts: Card, part: str) -> str | None:
    """The "config" or the "split" of the only dataset."""
    about = facts.record.card.get("dataset_metadata")
    if isinstance(about, list | tuple):
        about = about[0] if len(about) == 1 else None
    return next(iter(texts(about.get(part))), None) if isinstance(about, Mapping) else None


def _is_repo_id(name: str) -> bool:
    """Whether the Hub takes it as the id of a model or a data set; a path is none.

    >>> [_is_repo_id(name) for name in ("bert", "google-bert/bert", "/home/bert", "./bert", "a b")]
    [True, True, False, False, False]
    """
    return (
        re.fullmatch(r"(?!.*(--|\.\.))(\w[\w.-]*\b/)?\w[\w.-]{0,95}\b", name, re.ASCII) is not None
    )


def find_title(facts: Card) -> str:
    """The model's name, on one line."""
    return one_line(facts.model_name) or one_line(facts.repo_id or "") or "Pruned model"
