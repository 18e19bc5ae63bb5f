"""The named methods: what `PruningConfig(method=...)` means, one row each.

A method is a set of values for the fields of `PruningConfig`; a field that the user gives goes
before the method's. The rows are in methods.yaml. To add one from outside, put a `Method` into
`METHODS`: nothing else has to change.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml

from hf_cyclprune.checks import check_known
from hf_cyclprune.papers import PAPERS, Paper


@dataclass(frozen=True)
class Plan:
    """A `PruningConfig` with every choice made: the user's, or else the method's, or else these.

    These defaults are the paper's (https://arxiv.org/abs/2202.01290): magnitude, four cycles,
    sparsity resets to half of the target, four fifths of a cycle climb, and the learning rate
    restarts with every cycle. The fields have the names and meanings of the config's.
    """

    criterion: str = "magnitude"
    scope: str | None = None
    min_density: float = 0.0
    num_cycles: int = 4
    reset_ratio: float | None = 0.5
    ramp: str = "cubic"
    ramp_ratio: float = 0.8
    levels: str = "constant"
    rise_ratio: float = 0.8
    recompute: str = "climb"
    interval_steps: int | None = None
    initial_sparsity: float = 0.0
    initial_criterion: str | None = None
    pruned_weights: str = "zero"
    pruned_decay: float = 0.0
    flow_ratio: float = 1.0
    regrowth: str = "none"
    regrowth_ratio: float = 0.3
    regrowth_until: float = 0.75
    regrowth_at: str = "steps"
    protect_ratio: float = 0.0
    lr_restarts: bool = True
    restart_decay: float = 1.0


@dataclass(frozen=True)
class Method:
    """One row of the table of methods."""

    title: str
    """In running text, after "with": "cyclical pruning"."""
    formula: str
    """Sparsity s over the position x in [0, 1] of a cycle (or of the run), in one line."""
    sentence: str
    """What happens to the weights; `{num_cycles}` and the other fields of a plan are filled in."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Fields of `PruningConfig` -> the method's values, where they are not those of `Plan`."""
    paper: Paper | None = None
    tag: str | None = None
    """On the Hub."""
    training: Mapping[str, object] = field(default_factory=dict)
    """Training arguments that `hf-cyclprune glue` sets unless the user gives them."""
    finding: str | None = None
    """What this library's own comparisons say about it, where it claims that cycles help."""

    def __post_init__(self) -> None:
        for name in self.settings:
            check_known("a method's setting", name, [f.name for f in fields(Plan)])


def _read_rows() -> dict[str, Method]:
    rows = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    for row in rows.values():
        row["paper"] = PAPERS[row["paper"]] if "paper" in row else None
    return {name: Method(**row) for name, row in rows.items()}


METHODS = _read_rows()
"""Every method under the name that `PruningConfig.method` and `--method` take."""
