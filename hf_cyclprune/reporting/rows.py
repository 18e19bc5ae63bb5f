"""The rows of a report's tables in the console and on the card: column -> text, None if unknown."""

from collections.abc import Sequence

from hf_cyclprune.reporting.cycles import CycleReport
from hf_cyclprune.reporting.metrics import PREFIX
from hf_cyclprune.reporting.numbers import count, number, percent
from hf_cyclprune.reporting.weights import WeightGroup

Rows = list[dict[str, str | None]]


def kind_rows(weights: WeightGroup) -> Rows:
    """Return a row for every kind of matrix."""
    return [count_row("matrix", kind, group) for kind, group in weights.by_kind().items()]


def layer_rows(weights: WeightGroup) -> Rows:
    """Return a row for every layer."""
    names = {"none": "outside of the blocks"}
    return [
        count_row("layer", names.get(name, name), group)
        for name, group in weights.by_layer().items()
    ]


def count_row(title: str, name: str, group: WeightGroup) -> dict[str, str | None]:
    """Return the row of one group, with its name in the column `title`."""
    return {
        title: name,
        "weights": count(group.num_weights),
        "zeros": count(group.num_zeros),
        "sparsity": percent(group.sparsity),
        "n:m": ", ".join(group.patterns) or None,
    }


def cycle_rows(cycles: Sequence[CycleReport]) -> Rows:
    """Return a row for every finished cycle, with the main metrics of the evaluation at its end."""
    exchanges = ("benefit", "cost") if any(cycle.benefit is not None for cycle in cycles) else ()
    metrics = [cycle.main_metrics for cycle in cycles]
    names = dict.fromkeys(name for measured in metrics for name in measured)
    return [
        {
            "cycle": count(cycle.cycle),
            "last step": count(cycle.end_step),
            "sparsity": percent(cycle.sparsity),
            **{name.removeprefix(PREFIX): number(measured.get(name)) for name in names},
            "recovered at edge": percent(cycle.recovered_share_at_edge),
            "recovered at end": percent(cycle.recovered_share_at_end),
            "mask change": percent(cycle.mask_change),
            **{name: number(getattr(cycle, name)) for name in exchanges},
        }
        for cycle, measured in zip(cycles, metrics, strict=True)
    ]
