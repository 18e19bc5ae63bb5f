"""Checkpoints under the names that the Trainer reads back.

from_pretrained renames the weights of old files, such as google-bert/bert-base-uncased with its
`LayerNorm.gamma` and `LayerNorm.beta`, and save_pretrained undoes that. So a Trainer's checkpoints
have the old names too, but it reads them with load_state_dict, which knows only the new ones: a
resumed run, or the best model of one, has the LayerNorms of the start of training. Seen with the
stock Trainer of transformers 5.23.0; 5.0.0 writes the old names after every from_pretrained.
https://github.com/huggingface/transformers/issues/48805 is the same for other conversions.
"""

from typing import Any

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
