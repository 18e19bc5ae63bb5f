"""The rows of a card's tables."""

from typing import Any

from hf_cyclprune.card.facts import Card
from hf_cyclprune.card.text import Rows, measured, number
from hf_cyclprune.reporting.rows import cycle_rows, kind_rows, layer_rows


def make_tables(facts: Card) -> dict[str, Any]:
    """Rows under the names that the template has for them."""
    metrics = _metric_rows(facts)
    has_cycles = facts.config.plan.num_cycles > 1 and facts.config.target_sparsity is not None
    return {
        "metrics": metrics,
        "has_dense": any(row["dense"] for row in metrics),
        "kinds": kind_rows(facts.report),
        "layers": layer_rows(facts.report),
        "cycles": cycle_rows(facts.report.cycles) if has_cycles else [],
        "sizes": _size_rows(facts),
    }


def _metric_rows(facts: Card) -> Rows:
    dense = measured(facts.record.dense_metrics)
    return [
        {"metric": name, "dense": number(dense.get(name)), "pruned": number(value)}
        for name, value in measured(facts.record.metrics).items()
    ]


def _size_rows(facts: Card) -> Rows:
    packed = facts.packed_bytes if facts.packed_folder else None
    sizes = {"dense": facts.dense_bytes, "packed": packed}
    return [
        {"weights": name, "bytes": f"{size:,}", "MB": f"{size / 1e6:,.1f}"}
        for name, size in sizes.items()
        if size is not None
    ]
