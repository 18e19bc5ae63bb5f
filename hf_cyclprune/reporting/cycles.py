"""What the cycles of a run did to the masks: recovered share and mask change."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from numbers import Real
from typing import Any

from torch import Tensor

from hf_cyclprune.pruning.masks import compare_masks, pack_mask

# What the Trainer adds to every evaluation, and what differs from run to run.
_SPEED = ("_runtime", "_per_second", "_preparation_time", "_compilation_time")


@dataclass(frozen=True)
class CycleReport:
    """One finished cycle, all fractions over target weights; None where there is none before it."""

    cycle: int
    """1, 2, .."""
    end_step: int
    """The cycle's last optimizer step."""
    sparsity: float
    """At the cycle's end."""
    reset_step: int | None = None
    """The optimizer step after which weights were freed; the edge, or later if it had to wait."""
    recovered_share_at_edge: float | None = None
    """Pruned at the previous cycle's end and kept right after the reset."""
    recovered_share_at_end: float | None = None
    """Pruned at the previous cycle's end and kept at this one's."""
    mask_change: float | None = None
    """Jaccard distance of the kept sets at the previous and at this cycle's end."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the evaluation at the cycle's end, if there was one: `eval_accuracy`, .."""

    @property
    def main_metrics(self) -> dict[str, float]:
        """What a short account has room for: all but the losses; these if there is nothing else."""
        others = {n: value for n, value in self.metrics.items() if not n.endswith("_loss")}
        return others or self.metrics

    @property
    def shares(self) -> dict[str, float]:
        """Recovered shares and mask change, as far as there are any; name -> value."""
        names = ("recovered_share_at_edge", "recovered_share_at_end", "mask_change")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def describe(self, num_cycles: int) -> str:
        """One line.

        >>> CycleReport(1, 10, 0.5, metrics={"eval_loss": 0.25, "eval_f1": 0.5}).describe(4)
        'cycle 1 of 4 ended at step 10: sparsity 50.00%, eval_f1 0.5000'
        >>> CycleReport(2, 20, 0.5, 11, 0.25, 0.125, 0.5).describe(2)[40:]
        '50.00%; recovered 25.00% at the edge, 12.50% at the end; mask changed by 50.00%'
        """
        facts = [f"sparsity {self.sparsity:.2%}"]
        facts += [f"{name} {format_metric(value)}" for name, value in self.main_metrics.items()]
        places = {"the edge": self.recovered_share_at_edge, "the end": self.recovered_share_at_end}
        shares = [f"{share:.2%} at {place}" for place, share in places.items() if share is not None]
        parts = [", ".join(facts)]
        if shares:
            parts.append(f"recovered {', '.join(shares)}")
        if self.mask_change is not None:
            parts.append(f"mask changed by {self.mask_change:.2%}")
        return f"cycle {self.cycle} of {num_cycles} ended at step {self.end_step}: " + "; ".join(
            parts
        )


@dataclass
class CycleHistory:
    """Follows the masks of a run; remembers one bit per weight, the end of the previous cycle."""

    cycles: list[CycleReport] = field(default_factory=list)
    reset_step: int | None = None
    recovered_at_edge: float | None = None
    is_plan_kept: bool = True
    """False once the run was resumed with another schedule."""
    reference: dict[str, Tensor] = field(default_factory=dict)

    def observe_reset(self, t: int, masks: Mapping[str, Tensor]) -> None:
        """Call after a step that freed weights."""
        if self.reference:
            self.reset_step = t
            self.recovered_at_edge = compare_masks(self.reference, masks)[0]

    def observe_end(self, t: int, cycle: int, sparsity: float, masks: Mapping[str, Tensor]) -> None:
        """Call after the last step of cycle 0, 1, .."""
        recovered, change = compare_masks(self.reference, masks) if self.reference else (None, None)
        self.cycles.append(
            CycleReport(
                cycle=cycle + 1,
                end_step=t,
                sparsity=sparsity,
                reset_step=self.reset_step,
                recovered_share_at_edge=self.recovered_at_edge,
                recovered_share_at_end=recovered,
                mask_change=change,
            )
        )
        self.reset_step = self.recovered_at_edge = None
        self.reference = {name: pack_mask(mask) for name, mask in masks.items()}

    def observe_evaluation(self, t: int, metrics: Mapping[str, Any]) -> None:
        """Call after an evaluation; it counts if a cycle has ended with step t.

        Of several data sets each is an evaluation.
        """
        if self.cycles and self.cycles[-1].end_step == t:
            both = {**self.cycles[-1].metrics, **evaluation_metrics(metrics)}
            self.cycles[-1] = replace(self.cycles[-1], metrics=both)

    def shares_at(self, t: int) -> dict[str, float]:
        """The shares of the cycle that has ended with step t; {} if none has."""
        is_end = bool(self.cycles) and self.cycles[-1].end_step == t
        return self.cycles[-1].shares if is_end else {}

    def to_dict(self) -> dict[str, Any]:
        """JSON, without the reference."""
        return {
            "cycles": [asdict(cycle) for cycle in self.cycles],
            "reset_step": self.reset_step,
            "recovered_at_edge": self.recovered_at_edge,
            "is_plan_kept": self.is_plan_kept,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], reference: dict[str, Tensor]) -> "CycleHistory":
        values = {**values, "cycles": [CycleReport(**cycle) for cycle in values.get("cycles", [])]}
        return cls(**values, reference=reference)


def evaluation_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers called `eval_*`, without those of the evaluation's speed.

    >>> evaluation_metrics({"eval_f1": 0.5, "eval_loss": float("nan"), "eval_runtime": 9.0})
    {'eval_f1': 0.5}
    """
    return {
        name: float(value)
        for name, value in metrics.items()
        if name.startswith("eval_") and not name.endswith(_SPEED)
        if isinstance(value, Real) and math.isfinite(value)
    }


def format_metric(value: float) -> str:
    """Four decimals, or four digits where these would be zeros or too many.

    >>> format_metric(0.85), format_metric(0.000012345), format_metric(1234567.0)
    ('0.8500', '1.234e-05', '1.235e+06')
    """
    is_plain = value == 0 or 1e-3 <= abs(value) < 1e5
    return f"{value:.4f}" if is_plain else f"{value:.4g}"
