"""Checkpoints under the names that the Trainer reads back.

from_pretrained renames the weights of old files, such as google-bert/bert-base-uncased with its
`LayerNorm.gamma` and `LayerNorm.beta`, and save_pretrained undoes that. So a Trainer's checkpoints
have the old names too, but it reads them with load_state_dict, which knows only the new ones: a
resumed run, or the best model of one, has the LayerNorms of the start of training. Seen with the
stock Trainer of transformers 5.23.0; 5.0.0 writes the old names after every from_pretrained.
https://github.com/huggingface/transformers/issues/48805 is the same for other conversions.
"""

import inspect
from typing import Any

from torch import nn

_OLD_NAMES = ("LayerNorm.gamma", "LayerNorm.beta")


def save_under_own_names(model: Any) -> None:
    """Make save_pretrained write the names of the model's state_dict."""
    conversions = getattr(model, "_weight_conversions", None)
    if conversions:
        model._weight_conversions = [
            conversion
            for conversion in conversions
            if not any(old in str(conversion.source_patterns) for old in _OLD_NAMES)
        ]


def is_loss_inflated(model: nn.Module) -> bool:
    """Whether the model's forward takes any keyword but computes its loss without them.

    A model counts items if its forward, or one that it builds on, names `num_items_in_batch` or
    computes the loss in `self.loss_function`; and its author may say so by `accepts_loss_kwargs`.
    """
    if getattr(model, "accepts_loss_kwargs", None) is not None:
        return False
    forwards = [
        inspect.unwrap(vars(cls)["forward"])
        for cls in type(model).__mro__
        if inspect.isfunction(vars(cls).get("forward"))
    ]
    parameters = inspect.signature(forwards[0]).parameters if forwards else {}
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    counts_items = any(
        "loss_function" in forward.__code__.co_names
        or "num_items_in_batch" in inspect.signature(forward).parameters
        for forward in forwards
    )
    return takes_any and not counts_items
