"""The measured metrics as a card shows them, and how certain they are."""

import math
from collections.abc import Mapping

from hf_cyclprune.card.text import one_line
from hf_cyclprune.reporting.metrics import PREFIX, is_number, measured


def shown_metrics(values: Mapping[str, float]) -> dict[str, float]:
    """Return what was measured of the model's answers, under names without "eval_".

    >>> shown_metrics({"eval_f1": 0.5, "eval_runtime": 9.0, "eval_loss": float("nan")})
    {'f1': 0.5}
    """
    named = {one_line(n.removeprefix(PREFIX)): value for n, value in measured(values).items()}
    return {name: value for name, value in named.items() if name}


def num_examples(values: Mapping[str, float]) -> int | None:
    """Return how many examples were evaluated.

    None where there are two sets, as for MNLI: each has its own number.
    """
    if any(name.startswith(PREFIX) and name.endswith("_mm") for name in values):
        return None
    samples = values.get(f"{PREFIX}samples")
    return int(samples) if samples is not None and is_number(samples) and samples > 0 else None


def accuracy_error(values: Mapping[str, float]) -> float | None:
    """Return the binomial standard error of the accuracy."""
    accuracy, num = shown_metrics(values).get("accuracy"), num_examples(values)
    if accuracy is None or num is None or not 0 <= accuracy <= 1:
        return None
    return math.sqrt(accuracy * (1 - accuracy) / num)
