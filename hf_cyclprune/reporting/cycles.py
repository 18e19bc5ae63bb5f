"""What the cycles of a run did to the masks: recovered share and mask change."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_cyclprune.checkpoints.masks import pack_mask, unpack_mask


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


@dataclass
class CycleHistory:
    """Follows the masks of a run; remembers one bit per weight, the end of the previous cycle."""

    cycles: list[CycleReport] = field(default_factory=list)
    reset_step: int | None = None
    recovered_at_edge: float | None = None
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

    def to_dict(self) -> dict[str, Any]:
        """JSON, without the reference."""
        return {
            "cycles": [asdict(cycle) for cycle in self.cycles],
            "reset_step": self.reset_step,
            "recovered_at_edge": self.recovered_at_edge,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], reference: dict[str, Tensor]) -> "CycleHistory":
        values = {**values, "cycles": [CycleReport(**cycle) for cycle in values.get("cycles", [])]}
        return cls(**values, reference=reference)


def compare_masks(
    reference: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> tuple[float, float]:
    """(share of all weights that only `masks` keep, Jaccard distance of the kept sets).

    `reference` holds packed masks. Waits for the device once.
    """
    counts = []
    for name, mask in masks.items():
        before = unpack_mask(reference[name], tuple(mask.shape)).to(mask.device)
        counts.append(torch.stack([(mask > before).sum(), (mask & before).sum(), before.sum()]))
    recovered, in_both, kept_before = torch.stack(counts).sum(0).tolist()
    total = sum(mask.numel() for mask in masks.values())
    in_either = kept_before + recovered
    return recovered / total, 1.0 - in_both / in_either if in_either else 0.0
