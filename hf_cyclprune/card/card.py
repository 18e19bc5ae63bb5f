"""Everything that a model card may say, and what follows from it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import transformers
from transformers import PreTrainedModel

from hf_cyclprune.card.text import first_text, texts
from hf_cyclprune.config import PruningConfig
from hf_cyclprune.inference.timings import Bench
from hf_cyclprune.methods import METHODS, Method
from hf_cyclprune.pruning.schedules import cycle_edges
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
    """Everything that a model card may say; whatever is None or empty is left out of the text."""

    model_name: str
    report: SparsityReport
    """Counted in the weights that are uploaded."""
    config: PruningConfig
    record: RunRecord
    repo_id: str | None = None
    """The repository on the Hub that will hold the weights."""
    model_class: str | None = None
    """For example "BertForSequenceClassification"."""
    has_tokenizer: bool = False
    """Whether the folder with the weights also holds a tokenizer."""
    num_parameters: int | None = None
    """The number of parameters of the whole model, counted."""
    dense_bytes: int | None = None
    """The size of the weights on disk."""
    packed_bytes: int | None = None
    """The size of the packed weights on disk."""
    packed_folder: str | None = None
    """The folder of the repository with a packed copy, if there is one."""
    pictures: Mapping[str, str] = field(default_factory=dict)
    """ "schedule", "density", "recovery" or "speed" -> path in the repository."""
    bench: Bench | None = None
    """How fast these weights were on one machine."""
    license: str | None = None
    """The license of the base model; one in the card options takes its place."""

    @property
    def card_options(self) -> Mapping[str, object]:
        """The options that the caller of create_model_card passed."""
        return self.record.card

    @property
    def method(self) -> Method:
        """The row of the table of methods that the config names."""
        return METHODS[self.config.method]

    @property
    def is_of_first_cycle(self) -> bool:
        """Whether the weights are from the first of several planned cycles."""
        step, total_steps = self.record.weights_step, self.record.total_steps
        if not step or not total_steps or self.num_cycles == 1:
            return False
        return step <= cycle_edges(total_steps, self.num_cycles)[1]

    @property
    def num_cycles(self) -> int:
        """The planned cycles of the run."""
        total_steps, planned = self.record.total_steps, self.config.plan.num_cycles
        return self.config.num_cycles or min(planned, total_steps or planned)

    @property
    def patterns(self) -> list[str]:
        """The n:m patterns that the run aimed at, or kept, and that all target weights satisfy."""
        keeps_all = self.config.target_sparsity is None
        return [p for p in self.report.patterns if keeps_all or p == self.config.pattern]

    @property
    def title(self) -> str:
        """The model's name on one line."""
        return first_text(self.model_name, self.repo_id) or "Pruned model"

    @property
    def place(self) -> str:
        """What from_pretrained gets."""
        return first_text(self.repo_id) or f"path/to/{self.title}"

    @property
    def task(self) -> str | None:
        """The Hub's name of the task: the caller's, or else that of the model's class."""
        found = [task for end, task in TASKS.items() if (self.model_class or "").endswith(end)]
        return first_text(self.card_options.get("tasks"), found)

    @property
    def auto_class(self) -> str | None:
        """The class that loads the model; None if its own class is not part of transformers."""
        name = self.model_class or ""
        cls = getattr(transformers, name, None)
        if not (isinstance(cls, type) and issubclass(cls, PreTrainedModel)):
            return None
        return next((f"AutoModel{end}" for end in TASKS if name.endswith(end)), name)

    @property
    def base_model(self) -> str | None:
        """The Hub's id of the model that was fine-tuned; None if it has none."""
        names = texts(self.card_options.get("finetuned_from")) + texts(self.record.base_model)
        return next(filter(_is_repo_id, names), None)

    @property
    def dataset_ids(self) -> list[str]:
        """The ids of the data sets that are on the Hub."""
        return list(filter(_is_repo_id, texts(self.card_options.get("dataset_tags"))))

    def dataset_part(self, part: str) -> str | None:
        """Return the "config" or the "split" of the data set, if there is only one data set."""
        about = self.card_options.get("dataset_metadata")
        if isinstance(about, list | tuple):
            about = about[0] if len(about) == 1 else None
        return first_text(about.get(part)) if isinstance(about, Mapping) else None


def _is_repo_id(name: str) -> bool:
    """Return whether the Hub accepts the name of a model or a data set, which a path is not.

    >>> [_is_repo_id(name) for name in ("bert", "google-bert/bert", "/home/bert", "./bert", "a b")]
    [True, True, False, False, False]
    """
    return bool(re.fullmatch(r"(?!.*(--|\.\.))(\w[\w.-]*\b/)?\w[\w.-]{0,95}\b", name, re.ASCII))
