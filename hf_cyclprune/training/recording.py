"""Saving a model together with the facts of its weights."""

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import Trainer

from hf_cyclprune.card.card import Card
from hf_cyclprune.config import save_config
from hf_cyclprune.hub.page import remove_extras
from hf_cyclprune.packing.weights import fingerprint
from hf_cyclprune.reporting.run import RunRecord
from hf_cyclprune.secrets import hide_token
from hf_cyclprune.training.describe import find_base_model
from hf_cyclprune.training.saving import holds_weights, saved_whole


class RecordingTrainer(Trainer):
    """A Trainer that saves beside the weights what they are, and no token.

    Without facts (`card_facts`) it saves what `Trainer` does.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        hide_token(kwargs.get("args"))
        self.said: dict[str, Any] = {}
        """What the caller of create_model_card said."""
        self.dense_metrics: dict[str, float] = {}
        """Of a dense run that the card compares with."""
        self._saved: tuple[int | None, int | None] | None = None
        """The step whose weights were saved last, and their fingerprint if it can be had."""
        super().__init__(*args, **kwargs)
        has_class = kwargs.get("optimizer_cls_and_kwargs") is not None
        self.has_own_optimizer = self.optimizer is not None or has_class
        self.has_own_scheduler = self.lr_scheduler is not None
        if self.model is not None:  # a model_init makes it later
            _ = self.base_model_id

    @cached_property
    def base_model_id(self) -> str | None:
        """On the Hub, of the model that is fine-tuned; None if it came from elsewhere.

        Found once: folders come and go for which a name on the Hub could be mistaken.
        """
        return find_base_model(self.model)

    @property
    def has_facts(self) -> bool:
        """Whether there is something for a card, without counting it."""
        return False

    def card_facts(self) -> Card | None:
        """What the card may say of the model now; None for the card of `Trainer`."""
        return None

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        hide_token(self.args)
        folder = Path(str(output_dir if output_dir is not None else self.args.output_dir))
        if not (self.args.should_save and holds_weights(folder)):
            self._save_with_facts(folder, state_dict)
            return
        with saved_whole(folder) as new:
            self._save_with_facts(new, state_dict)
        remove_extras(folder)  # of the weights before

    def _save_with_facts(self, folder: Path, state_dict: dict[str, Any] | None) -> None:
        super()._save(str(folder), state_dict)
        facts = self.card_facts() if self.args.should_save else None
        if facts is not None:
            save_config(facts.config, folder)
            facts.report.save(folder)
            self._saved = (facts.record.weights_step, _find_fingerprint(folder))
            self.save_record(facts.record, folder)

    def save_record(self, record: RunRecord, folder: Path) -> None:
        """If it is about the weights that were saved last."""
        if self._saved is not None and self._saved[0] == record.weights_step:
            dataclasses.replace(record, fingerprint=self._saved[1]).save(folder)


def _find_fingerprint(folder: Path) -> int | None:
    """None where something else than a whole model was saved, such as an adapter."""
    try:
        return fingerprint(folder)
    except ValueError:
        return None
