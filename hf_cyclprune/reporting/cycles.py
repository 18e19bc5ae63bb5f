"""What the cycles of a run did to the masks: recovered share and mask change."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from hf_cyclprune.engines.shards import Shards
from hf_cyclprune.pruning.masks import compare_masks, pack_mask, unpack_mask
from hf_cyclprune.reporting.metrics import measured
from hf_cyclprune.reporting.numbers import number, percent


@dataclass(frozen=True)
class CycleReport:
    """One finished cycle; shares are over all target weights, and None in the first cycle."""

    cycle: int
    """Number of the cycle, counted from 1."""
    end_step: int
    """The last optimizer step of the cycle."""
    sparsity: float
    """Sparsity at the end of the cycle."""
    reset_step: int | None = None
    """The optimizer step after which weights were freed: the edge, or later if it had to wait."""
    recovered_share_at_edge: float | None = None
    """Share of weights pruned at the end of the previous cycle and kept right after the reset."""
    recovered_share_at_end: float | None = None
    """Share of weights pruned at the end of the previous cycle and kept at the end of this one."""
    mask_change: float | None = None
    """Jaccard distance between the kept weights at the ends of the previous and of this cycle."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of an evaluation at the end of the cycle, such as `eval_accuracy`; {} without one."""
    benefit: float | None = None
    """Mean predicted fall of the loss by a weight that was exchanged for a kept one at the edge."""
    cost: float | None = None
    """Mean predicted rise of the loss by a kept weight that made room for one of them."""

    @property
    def main_metrics(self) -> dict[str, float]:
        """The metrics without losses, for which tables have no room; the losses if alone."""
        metrics = measured(self.metrics)
        others = {name: value for name, value in metrics.items() if not name.endswith("_loss")}
        return others or metrics

    @property
    def shares(self) -> dict[str, float]:
        """What the cycle did to the masks, by name, without what is None."""
        recovered = ("recovered_share_at_edge", "recovered_share_at_end")
        names = (*recovered, "mask_change", "benefit", "cost")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def describe(self, num_cycles: int) -> str:
        """Return one line about the cycle, which is one of `num_cycles`.

        >>> CycleReport(1, 10, 0.5, metrics={"eval_loss": 0.25, "eval_f1": 0.5}).describe(4)
        'cycle 1 of 4 ended at step 10: sparsity 50.00%, eval_f1 0.5000'
        >>> CycleReport(2, 20, 0.5, 11, 0.25, 0.125, 0.5).describe(2)[40:]
        '50.00%; recovered 25.00% at the edge, 12.50% at the end; mask changed by 50.00%'
        """
        state = [f"sparsity {percent(self.sparsity)}"]
        state += [f"{name} {number(value)}" for name, value in self.main_metrics.items()]
        places = {"the edge": self.recovered_share_at_edge, "the end": self.recovered_share_at_end}
        recovered = [f"{percent(x)} at {place}" for place, x in places.items() if x is not None]
        parts = [", ".join(state)]
        if recovered:
            parts.append(f"recovered {', '.join(recovered)}")
        if self.benefit is not None and self.cost is not None:
            gain, loss = number(self.benefit), number(self.cost)
            parts.append(f"exchanged for a mean benefit of {gain} at a cost of {loss}")
        if self.mask_change is not None:
            parts.append(f"mask changed by {percent(self.mask_change)}")
        start = f"cycle {self.cycle} of {num_cycles} ended at step {self.end_step}"
        return f"{start}: {'; '.join(parts)}"


@dataclass
class CycleHistory:
    """The finished cycles of a run, and the masks at the end of the last, one bit per weight."""

    cycles: list[CycleReport] = field(default_factory=list)
    reset_step: int | None = None
    """The optimizer step of the reset in the current cycle; None if there was none yet."""
    recovered_at_edge: float | None = None
    """The recovered share right after that reset."""
    benefit: float | None = None
    """As in `CycleReport`, of the current cycle."""
    cost: float | None = None
    reach: float | None = None
    """See `find_reach`; None where it is not known."""
    restarts_lr: bool | None = None
    """Whether the learning rate restarts with every cycle; None where it is not known."""
    is_plan_kept: bool = True
    """False once the run was resumed with another schedule."""
    reference: dict[str, Tensor] = field(default_factory=dict)
    """The packed masks at the end of the previous cycle by name; {} in the first. Where weights are
    divided among ranks, those of the parts that are held here."""

    def observe_reset(
        self,
        t: int,
        masks: Mapping[str, Tensor],
        shards: Shards | None = None,
        benefit: float | None = None,
        cost: float | None = None,
    ) -> None:
        """Compare the masks after step t, which freed weights, with those of the previous cycle."""
        self.benefit, self.cost = benefit, cost
        if self.reference:
            self.reset_step = t
            self.recovered_at_edge = compare_masks(self.reference, masks, shards)[0]

    def observe_end(
        self,
        t: int,
        cycle: int,
        sparsity: float,
        masks: Mapping[str, Tensor],
        shards: Shards | None = None,
    ) -> None:
        """Add a cycle, counted from 0, whose last step was t."""
        recovered = change = None
        if self.reference:
            recovered, change = compare_masks(self.reference, masks, shards)
        self.cycles.append(
            CycleReport(
                cycle=cycle + 1,
                end_step=t,
                sparsity=sparsity,
                reset_step=self.reset_step,
                recovered_share_at_edge=self.recovered_at_edge,
                recovered_share_at_end=recovered,
                mask_change=change,
                benefit=self.benefit,
                cost=self.cost,
            )
        )
        self.reset_step = self.recovered_at_edge = self.benefit = self.cost = None
        self.reference = {name: pack_mask(mask) for name, mask in masks.items()}

    def observe_evaluation(self, t: int, metrics: Mapping[str, Any]) -> None:
        """Add the metrics of an evaluation after step t, if a cycle ended with that step.

        Several evaluations may follow one step, one for each data set.
        """
        if self.cycles and self.cycles[-1].end_step == t:
            both = {**self.cycles[-1].metrics, **measured(metrics)}
            self.cycles[-1] = replace(self.cycles[-1], metrics=both)

    def shares_at(self, t: int) -> dict[str, float]:
        """Return the shares of the cycle that ended with step t; {} if none did."""
        is_end = bool(self.cycles) and self.cycles[-1].end_step == t
        return self.cycles[-1].shares if is_end else {}

    def reference_of_wholes(self, shards: Shards) -> dict[str, Tensor]:
        """Return the reference for whole weights; asks all ranks."""
        wholes = {}
        for name, packed in self.reference.items():
            mask = unpack_mask(packed, tuple(shards[name].weight.shape))
            wholes[name] = pack_mask(shards[name].gather(mask.to(shards[name].weight.device)))
        return wholes

    def to_dict(self) -> dict[str, Any]:
        """Return values that JSON has, without the reference."""
        values = {**vars(self), "cycles": [asdict(cycle) for cycle in self.cycles]}
        del values["reference"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], reference: dict[str, Tensor]) -> "CycleHistory":
        """Return the history that `to_dict` and the reference were taken from."""
        values = {**values, "cycles": [CycleReport(**cycle) for cycle in values.get("cycles", [])]}
        return cls(**values, reference=reference)
