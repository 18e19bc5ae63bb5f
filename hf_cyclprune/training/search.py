"""Trials of a hyperparameter search: each begins with the pruning options as they were given."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from transformers import Trainer, TrainingArguments

from hf_cyclprune.training.arguments import PruningArguments

_OWN = {f.name for f in fields(PruningArguments)} - {f.name for f in fields(TrainingArguments)}


@contextmanager
def options_of_trial(trainer: Trainer, trial: Any = None, *_: Any, **__: Any) -> Iterator[None]:
    """Inside, a Trainer trains, perhaps for a trial, whose pruning options are undone afterwards.

    The Trainer itself leaves in the arguments what a trial chose, where it may contradict the
    choices of the next one, and makes every value one of the type that the old one had, even None.

    Args:
        trial: None, optuna's, or the values themselves.
    """
    args = trainer.args
    is_search = trial is not None and trainer.hp_search_backend is not None
    if not is_search or not isinstance(args, PruningArguments):
        yield
        return
    given = {name: getattr(args, name) for name in _OWN}
    space: Any = trainer.hp_space

    def chosen(values: Mapping[str, Any]) -> Mapping[str, Any]:
        for name in values.keys() & _OWN:
            setattr(args, name, None)  # which has no type to go by
        return values

    if isinstance(trial, Mapping):
        chosen(trial)
    trainer.hp_space = lambda trial: chosen(space(trial))
    try:
        yield
    finally:
        trainer.hp_space = space
        for name, value in given.items():
            setattr(args, name, value)
