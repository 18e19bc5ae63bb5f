"""Sparsities of single layers, by their names; the others make up the total."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from hf_cyclprune.checks import check_expressions, check_fraction
from hf_cyclprune.pruning.patterns import Pattern, Shapes, largest_remainder

_MOST_OFF = 1e-4
"""By how much the sparsities of all layers may miss the total, which is then kept exactly."""


@dataclass(frozen=True)
class LayerSparsities(Pattern):
    """Zeros anywhere, ranked in each target alone, with given sparsities for some of them.

    All other targets have one sparsity, by which the share of zeros in all targets together is the
    one asked for, exactly. While the total climbs, all climb in proportion.

    >>> by_name = LayerSparsities((("a", 0.25),), total=0.5)
    >>> by_name.num_pruned({"a": (2, 4), "b": (2, 4), "c": (2, 4)}, 0.5)
    [2, 5, 5]

    Args:
        given: pairs of a regular expression, searched in the names, and the sparsity at the end, in
            [0, 1]. Of several that match a name the first counts.
        total: s_t, in [0, 1).
    """

    given: tuple[tuple[str, float], ...]
    total: float

    def _shares(self, shapes: Shapes) -> tuple[list[float], list[int], float]:
        """Return sparsity at the end and size of each target, and the sparsity of all together."""
        given = [
            next((share for regex, share in self.given if re.search(regex, name)), None)
            for name in shapes
        ]
        sizes = [prod(shape) for shape in shapes.values()]
        pairs = list(zip(given, sizes, strict=True))
        zeros = sum(share * size for share, size in pairs if share is not None)
        num_others = sum(size for share, size in pairs if share is None)
        others = (self.total * sum(sizes) - zeros) / max(num_others, 1)
        mean = (zeros + others * num_others) / sum(sizes)
        return [others if share is None else share for share in given], sizes, mean

    def num_pruned(self, shapes: Shapes, sparsity: float) -> list[int]:
        shares, sizes, mean = self._shares(shapes)
        climbed = sparsity / mean if mean else 0.0
        parts = [min(1.0, climbed * s) * size for s, size in zip(shares, sizes, strict=True)]
        return largest_remainder(parts, round(sparsity * sum(sizes)), sizes)

    def check(self, shapes: Shapes) -> None:
        for regex, _ in self.given:
            if not any(re.search(regex, name) for name in shapes):
                raise ValueError(
                    f"layer_sparsities must match the names of target weights; got '{regex}', "
                    f"which matches none. Names look like '{next(iter(shapes))}'."
                )
        shares, _, mean = self._shares(shapes)
        others = next((share for share in shares if not 0.0 <= share <= 1.0), None)
        if others is not None:
            raise ValueError(
                f"layer_sparsities leave a sparsity of {others:.4g} to the other weights, so that "
                f"all have {self.total:g} together; it must be in [0, 1]. Change some, or sparsity."
            )
        if abs(mean - self.total) > _MOST_OFF:  # no weight is left to make up for it
            raise ValueError(
                "layer_sparsities must leave some weights out, or add up to the sparsity of "
                f"{self.total:g}; got {mean:.6g} for all. Change some, or sparsity."
            )


def parse_layer_sparsities(values: object) -> tuple[tuple[str, float], ...]:
    """Return the pairs that a user spelled "EXPRESSION=SPARSITY"; the last "=" counts.

    Raises:
        ValueError: another spelling, an invalid expression, or a sparsity out of [0, 1].
    """
    if not isinstance(values, Sequence) or isinstance(values, str):
        values = [values]
    pairs = []
    for value in values:
        regex, _, share = str(value).rpartition("=")
        try:
            number = float(share)
        except ValueError:
            number = math.nan
        if not regex or math.isnan(number):
            raise ValueError(
                f"layer_sparsities must be a list of 'EXPRESSION=SPARSITY'; got {value!r}. Write "
                "for example layer_sparsities=['query=0.95', 'layer.0=0.5']."
            )
        check_expressions("layer_sparsities", [regex])
        check_fraction("layer_sparsities", number)
        pairs.append((regex, number))
    return tuple(pairs)
