"""What a pruning step did."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PruningStep:
    """The outcome of `Pruner.step`."""

    num_recomputed: int = 0
    """Groups that got new masks."""
    is_reset: bool = False
    """Whether weights were let back: at a reset, or by an exchange at an edge."""
    benefit: float | None = None
    """Mean score of the weights that returned by an exchange at an edge, by its criterion."""
    cost: float | None = None
    """Mean score of the kept weights that made room for them."""
