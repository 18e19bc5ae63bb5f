"""How sparse a model is, counted in its weights; never copied from a config."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hf_cyclprune.pruning.patterns import NM, parse_pattern
from hf_cyclprune.pruning.targets import find_targets
from hf_cyclprune.reporting.cycles import CycleReport

if TYPE_CHECKING:
    from rich.console import RenderableType

REPORT_NAME = "sparsity_report.json"
CHECKED_PATTERNS = ("2:4", "4:8")


@dataclass(frozen=True)
class WeightReport:
    """One target weight."""

    name: str
    layer: int | None
    """Index of the block that holds it."""
    kind: str
    """Its name inside the block, such as "attention.self.query"."""
    shape: tuple[int, ...]
    num_zeros: int
    patterns: tuple[str, ...]
    """The n:m patterns that every group of it satisfies."""

    @property
    def num_weights(self) -> int:
        return int(torch.Size(self.shape).numel())

    @property
    def sparsity(self) -> float:
        return self.num_zeros / self.num_weights


@dataclass(frozen=True)
class SparsityReport:
    """Zeros of every target weight, and the finished cycles of the run that made them.

    `str(report)` is a table for people, `rich.print(report)` the same in colour; `to_dict` is JSON.
    """

    weights: tuple[WeightReport, ...]
    cycles: tuple[CycleReport, ...] = ()
    target_sparsity: float | None = None
    """What the run was asked for, where there was a run."""

    @classmethod
    def measure(
        cls,
        model: nn.Module,
        *,
        targets: Sequence[str] | None = None,
        ignore: Sequence[str] | None = None,
        patterns: Iterable[str] = CHECKED_PATTERNS,
        cycles: Iterable[CycleReport] = (),
        target_sparsity: float | None = None,
    ) -> "SparsityReport":
        """Count the zeros of the model's target weights (`find_targets`) as they are now."""
        weights = find_targets(model, targets, ignore, keep_frozen=True)
        checked = [p for p in map(parse_pattern, dict.fromkeys(patterns)) if isinstance(p, NM)]
        measured = tuple(
            _measure(name, weight.detach(), checked) for name, weight in weights.items()
        )
        return cls(measured, tuple(cycles), target_sparsity)

    @property
    def num_weights(self) -> int:
        return sum(weight.num_weights for weight in self.weights)

    @property
    def num_zeros(self) -> int:
        return sum(weight.num_zeros for weight in self.weights)

    @property
    def sparsity(self) -> float:
        """Zeros among the target weights."""
        return self.num_zeros / self.num_weights

    @property
    def is_at_target(self) -> bool:
        """Whether the zeros are those asked for, up to the rounding of a count in each matrix."""
        if self.target_sparsity is None:
            return True
        missing = abs(self.num_zeros - self.target_sparsity * self.num_weights)
        return missing <= len(self.weights)

    @property
    def patterns(self) -> tuple[str, ...]:
        """The n:m patterns that all target weights satisfy."""
        common = set.intersection(*(set(weight.patterns) for weight in self.weights))
        return tuple(p for p in self.weights[0].patterns if p in common)

    def by_layer(self) -> dict[str, "SparsityReport"]:
        """The weights of each block."""
        return self.grouped(lambda w: "none" if w.layer is None else f"layer {w.layer}")

    def by_kind(self) -> dict[str, "SparsityReport"]:
        """The weights of each kind of matrix."""
        return self.grouped(lambda w: w.kind)

    def grouped(self, key: Callable[[WeightReport], str]) -> dict[str, "SparsityReport"]:
        """The weights of each value of `key`, in the order of the first."""
        groups: dict[str, list[WeightReport]] = {}
        for weight in self.weights:
            groups.setdefault(key(weight), []).append(weight)
        return {name: SparsityReport(tuple(weights)) for name, weights in groups.items()}

    def to_dict(self) -> dict[str, Any]:
        return {
            "sparsity": self.sparsity,
            "num_weights": self.num_weights,
            "num_zeros": self.num_zeros,
            "target_sparsity": self.target_sparsity,
            "is_at_target": self.is_at_target,
            "patterns": list(self.patterns),
            "weights": [asdict(weight) for weight in self.weights],
            "cycles": [asdict(cycle) for cycle in self.cycles],
        }

    def save(self, folder: str | Path) -> Path:
        """Write sparsity_report.json into `folder`."""
        path = Path(folder) / REPORT_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        return path

    def __str__(self) -> str:
        from hf_cyclprune.reporting.table import to_text  # which knows this class

        return to_text(self)

    def __rich__(self) -> "RenderableType":
        from hf_cyclprune.reporting.table import make_table

        return make_table(self)


def load_report(folder: str | Path) -> SparsityReport | None:
    """The report in a folder's sparsity_report.json, as it was saved; None without the file.

    Raises:
        ValueError: it cannot be read.
    """
    path = Path(folder) / REPORT_NAME
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        weights = tuple(
            WeightReport(**{**w, "shape": tuple(w["shape"]), "patterns": tuple(w["patterns"])})
            for w in values["weights"]
        )
        cycles = tuple(CycleReport(**cycle) for cycle in values["cycles"])
        return SparsityReport(weights, cycles, values["target_sparsity"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{REPORT_NAME} must be as hf_cyclprune wrote it; got {error!r} in {folder}. Delete it "
            "to do without."
        ) from error


def _measure(name: str, weight: Tensor, patterns: Sequence[NM]) -> WeightReport:
    is_kept = weight != 0
    layer, kind = split_name(name)
    return WeightReport(
        name=name,
        layer=layer,
        kind=kind,
        shape=tuple(weight.shape),
        num_zeros=weight.numel() - int(is_kept.sum()),
        patterns=tuple(str(p) for p in patterns if satisfies(is_kept, p)),
    )


def satisfies(is_kept: Tensor, pattern: NM) -> bool:
    """Whether at most n of every m consecutive entries of each row are kept.  # (O, I)"""
    if is_kept.shape[-1] % pattern.m:
        return False
    groups = is_kept.reshape(-1, pattern.m)  # (O * I/M, M)
    return bool((groups.sum(-1) <= pattern.n).all())


def split_name(name: str) -> tuple[int | None, str]:
    """Block index and name inside the block of a weight.

    >>> split_name("bert.encoder.layer.3.attention.self.query.weight")
    (3, 'attention.self.query')
    """
    match = re.search(r"\.(\d+)\.(.+?)(?:\.weight)?$", name)
    return (int(match[1]), match[2]) if match else (None, name.removesuffix(".weight"))
