"""How sparse a model is, counted in its weights; never copied from a config."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from torch import Tensor, nn

from hf_cyclprune.files import read_json, write_json
from hf_cyclprune.pruning.patterns import NM, parse_pattern
from hf_cyclprune.pruning.targets import find_targets
from hf_cyclprune.reporting.cycles import CycleReport
from hf_cyclprune.reporting.table import make_table, to_text
from hf_cyclprune.reporting.weights import (
    WeightGroup,
    WeightReport,
    count_parameters,
    measure_weight,
)

REPORT_NAME = "sparsity_report.json"
CHECKED_PATTERNS = ("2:4", "4:8")
REMEDY = "Delete the file to go on without it."


@dataclass(frozen=True)
class SparsityReport(WeightGroup):
    """Zeros of every target weight, and the finished cycles of the run that made them.

    `str(report)` is a table for people, `rich.print(report)` the same in colour; `to_dict` is JSON.
    """

    cycles: tuple[CycleReport, ...] = ()
    target_sparsity: float | None = None
    """The sparsity that the run was asked for; None if there was no run, or it had no target."""
    num_parameters: int | None = None
    """All parameters of the model, targets or not; None if only targets were counted."""
    num_zero_parameters: int | None = None
    """How many of all parameters are zero."""

    @classmethod
    def measure(
        cls,
        model: nn.Module | Mapping[str, Tensor],
        *,
        targets: Sequence[str] | None = None,
        ignore: Sequence[str] | None = None,
        patterns: Iterable[str] = CHECKED_PATTERNS,
        cycles: Iterable[CycleReport] = (),
        target_sparsity: float | None = None,
        output_errors: Mapping[str, tuple[float, float]] | None = None,
        parameters: Iterable[Tensor] | None = None,
    ) -> "SparsityReport":
        """Count the zeros of the target weights as they are now.

        Args:
            model: a model, or its target weights by name.
            targets, ignore: which weights of a model are meant, and what is an error, as for
                `find_targets`.
            patterns: the n:m patterns to check; other patterns are passed over.
            cycles, target_sparsity: those of the run, for the report.
            output_errors: name -> `output_error_masked` and `output_error` of `WeightReport`.
            parameters: all of the model that the weights of a mapping belong to.
        """
        weights = model
        if isinstance(weights, nn.Module):
            parameters = weights.parameters()
            weights = find_targets(weights, targets, ignore, keep_frozen=True)
        checked = [p for p in map(parse_pattern, dict.fromkeys(patterns)) if isinstance(p, NM)]
        errors = output_errors or {}
        counted = (
            measure_weight(name, weight, checked, errors.get(name, (None, None)))
            for name, weight in weights.items()
        )
        sums = count_parameters(parameters) if parameters is not None else (None, None)
        return cls(tuple(counted), tuple(cycles), target_sparsity, *sums)

    @property
    def is_at_target(self) -> bool:
        """Whether the zeros are those asked for, up to the rounding of a count in each matrix."""
        if self.target_sparsity is None:
            return True
        missing = abs(self.num_zeros - self.target_sparsity * self.num_weights)
        return missing <= len(self.weights)

    def to_dict(self) -> dict[str, Any]:
        """Return the report and its sums as values that JSON has."""
        sums = ("sparsity", "num_weights", "num_zeros", "target_sparsity", "is_at_target")
        names = (*sums, "num_parameters", "num_zero_parameters")
        return {name: getattr(self, name) for name in names} | {
            "patterns": list(self.patterns),
            "weights": [asdict(weight) for weight in self.weights],
            "cycles": [asdict(cycle) for cycle in self.cycles],
        }

    def save(self, folder: str | Path) -> Path:
        """Write sparsity_report.json into `folder`; return its path."""
        return write_json(Path(folder) / REPORT_NAME, self.to_dict())

    def __str__(self) -> str:
        return to_text(self)

    def __rich__(self) -> RenderableType:
        missed = None if self.is_at_target else self.target_sparsity
        sums = (self.num_zero_parameters, self.num_parameters)
        return make_table(self, self.cycles, missed, sums)


def load_report(folder: str | Path) -> SparsityReport | None:
    """Return the report that was saved in `folder`; None if there is none.

    Raises:
        ValueError: it cannot be read.
    """
    path = Path(folder) / REPORT_NAME
    if not path.is_file():
        return None
    values = read_json(path, REMEDY)
    try:
        weights = tuple(
            WeightReport(**{**w, "shape": tuple(w["shape"]), "patterns": tuple(w["patterns"])})
            for w in values["weights"]
        )
        cycles = tuple(CycleReport(**cycle) for cycle in values["cycles"])
        sums = (values[name] for name in ("num_parameters", "num_zero_parameters"))
        return SparsityReport(weights, cycles, values["target_sparsity"], *sums)
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"{REPORT_NAME} in '{folder}' is not one that hf_cyclprune wrote: {error!r}. {REMEDY}"
        ) from error
