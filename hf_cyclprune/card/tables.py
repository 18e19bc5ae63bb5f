"""The rows of a card's tables."""

from collections.abc import Mapping
from typing import Any

from hf_cyclprune.card.facts import Card
from hf_cyclprune.card.text import Rows, measured, number, percent
from hf_cyclprune.reporting.report import SparsityReport


def make_tables(facts: Card) -> dict[str, Any]:
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


def _metric_rows(facts: Card) -> Rows:
    dense = measured(facts.record.dense_metrics)
    return [
        {"metric": name, "dense": number(dense.get(name)), "pruned": number(value)}
        for name, value in measured(facts.record.metrics).items()
    ]


def _group_rows(title: str, groups: Mapping[str, SparsityReport]) -> Rows:
    return [
        {
            title: "outside of the blocks" if name == "none" else name,
            "weights": f"{group.num_weights:,}",
            "zeros": f"{group.num_zeros:,}",
            "sparsity": percent(group.sparsity),
            "n:m": ", ".join(group.patterns) or None,
        }
        for name, group in groups.items()
    ]


def _cycle_rows(facts: Card) -> Rows:
    """One for each finished cycle; none where there is but one to come."""
    if facts.config.plan.num_cycles == 1 or facts.config.method == "hold":
        return []
    metrics = [measured(cycle.metrics) for cycle in facts.report.cycles]
    names = dict.fromkeys(name for measured in metrics for name in measured)
    return [
        {
            "cycle": f"{cycle.cycle:,}",
            "last step": f"{cycle.end_step:,}",
            "sparsity": percent(cycle.sparsity),
            **{name: number(measured.get(name)) for name in names},
            "recovered at the edge": percent(cycle.recovered_share_at_edge),
            "recovered at the end": percent(cycle.recovered_share_at_end),
            "mask change": percent(cycle.mask_change),
        }
        for cycle, measured in zip(facts.report.cycles, metrics, strict=True)
    ]


def _size_rows(facts: Card) -> Rows:
    packed = facts.packed_bytes if facts.packed_folder else None
    sizes = {"dense": facts.dense_bytes, "packed": packed}
    return [
        {"weights": name, "bytes": f"{size:,}", "MB": f"{size / 1e6:,.1f}"}
        for name, size in sizes.items()
        if size is not None
    ]
