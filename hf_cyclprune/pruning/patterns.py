"""Where zeros may fall: which weights are ranked together, and how many of them are pruned.

Counts are exact: a group loses `round(sparsity * numel)` weights whatever ties, zeros or NaNs its
scores hold, and an n:m pattern at full sparsity loses exactly m - n of every m weights.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from hf_cyclprune.checks import check_sparsity
from hf_cyclprune.pruning.selection import HIGHEST_KEY

Shapes = Mapping[str, Sequence[int]]
"""Target name -> shape, in target order."""

SCOPES = ("layer", "global", "erk")


class Pattern:
    """Splits the targets into groups and says how many weights of each are pruned."""

    def groups(self, shapes: Shapes) -> list[tuple[str, ...]]:
        """Return the groups of names that are ranked together, in target order."""
        return [(name,) for name in shapes]

    def num_pruned(self, shapes: Shapes, sparsity: float) -> list[int]:
        """Return how many weights of each group are pruned at a sparsity in [0, 1]."""
        raise NotImplementedError

    def check(self, shapes: Shapes) -> None:
        """Raise a ValueError that names a target on which this pattern cannot be laid out."""

    def protect(self, keys: Tensor, shape: Sequence[int]) -> Tensor:
        """Return the keys with the highest possible one where this pattern never prunes."""
        return keys

    protects_within = ""
    """What `protect` must see at once: "" if it protects nothing, or a "row", or the "weight"."""


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Zeros anywhere. Scope "layer": the same sparsity in every target; "global": one ranking over
    all of them; "erk": by layer, denser the smaller the layer (see `erk_densities`).

    `min_density` is for "global": the share of every target that is kept in any case, since nothing
    passes through a matrix of zeros, and few of them can ruin a model.

    >>> Unstructured("layer").num_pruned({"a": (2, 4), "b": (3, 3)}, 0.5)
    [4, 4]
    >>> Unstructured("global").num_pruned({"a": (2, 4), "b": (3, 3)}, 0.5)
    [8]
    """

    scope: str = "layer"
    min_density: float = 0.0

    def protect(self, keys: Tensor, shape: Sequence[int]) -> Tensor:
        num_kept = math.ceil(self.min_density * keys.numel())
        return keys.scatter(0, keys.topk(num_kept).indices, HIGHEST_KEY) if num_kept else keys

    @property
    def protects_within(self) -> str:  # type: ignore[override]
        return "weight" if self.min_density else ""

    def groups(self, shapes: Shapes) -> list[tuple[str, ...]]:
        return [tuple(shapes)] if self.scope == "global" else super().groups(shapes)

    def num_pruned(self, shapes: Shapes, sparsity: float) -> list[int]:
        sizes = [prod(shape) for shape in shapes.values()]
        if self.scope == "global":
            return [round(sparsity * sum(sizes))]
        if self.scope == "layer":
            return [round(sparsity * size) for size in sizes]
        densities = erk_densities(list(shapes.values()), 1.0 - sparsity)
        pruned = [size * (1.0 - density) for size, density in zip(sizes, densities, strict=True)]
        return largest_remainder(pruned, round(sparsity * sum(sizes)), sizes)


@dataclass(frozen=True)
class NM(Pattern):
    """n kept of every m consecutive weights along the input dimension of each row.

    At a lower sparsity the n highest scores of every group of m are kept, and of the others the
    lowest in the whole target are pruned. So the target is dense at sparsity 0, and exactly n:m at
    (m - n) / m.

    >>> NM(2, 4).num_pruned({"a": (2, 8)}, 0.25)
    [4]
    """

    n: int
    m: int

    protects_within = "row"

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def sparsity(self) -> float:
        """(m - n) / m, the sparsity at which every group is full."""
        return (self.m - self.n) / self.m

    def num_pruned(self, shapes: Shapes, sparsity: float) -> list[int]:
        full = [prod(shape) * (self.m - self.n) // self.m for shape in shapes.values()]
        if sparsity >= self.sparsity:
            return full
        return [round(sparsity / self.sparsity * count) for count in full]

    def check(self, shapes: Shapes) -> None:
        for name, shape in shapes.items():
            if shape[-1] % self.m:
                raise ValueError(
                    f"pattern '{self}' needs input dimensions divisible by {self.m}; got "
                    f"{shape[-1]} in '{name}'. Leave this weight out with ignore=."
                )

    def protect(self, keys: Tensor, shape: Sequence[int]) -> Tensor:
        groups = keys.view(-1, self.m)  # (O * I/M, M)
        return groups.masked_fill(is_top_of_group(groups, self.n), HIGHEST_KEY).view(-1)


def is_top_of_group(groups: Tensor, n: int) -> Tensor:
    """Mark the n highest entries of each row; of equal ones the first.  # (G, M) -> bool (G, M)

    An entry's rank is the number of entries that beat it: larger ones, and equal ones before it.
    """
    num_groups, m = groups.shape
    columns = groups.t().contiguous()  # (M, G): whole columns are compared
    rank = torch.zeros((m, num_groups), dtype=torch.int16, device=groups.device)
    for i in range(m):
        for j in range(i + 1, m):
            is_first_higher = columns[i] >= columns[j]
            rank[j] += is_first_higher
            rank[i] += ~is_first_higher
    return (rank < n).t()


def erk_densities(shapes: Sequence[Sequence[int]], density: float) -> list[float]:
    """Return Erdos-Renyi-kernel densities: proportional to sum(shape) / prod(shape), at most 1.

    Layers whose share exceeds 1 stay dense, and the others take up what is left, so that the mean
    over all weights is `density` (Evci et al. 2020, https://arxiv.org/abs/1911.11134, section 3).

    >>> [round(1 - d, 2) for d in erk_densities([(2, 4), (3, 6, 7), (7, 4)], 0.5)]
    [0.0, 0.64, 0.0]
    """
    sizes = [prod(shape) for shape in shapes]
    is_dense = [False] * len(shapes)
    while True:
        kept = density * sum(sizes) - sum(s for s, d in zip(sizes, is_dense, strict=True) if d)
        share = sum(sum(s) for s, d in zip(shapes, is_dense, strict=True) if not d)
        scale = kept / share if share else 0.0
        densities = [
            1.0 if d else scale * sum(shape) / size
            for shape, size, d in zip(shapes, sizes, is_dense, strict=True)
        ]
        too_dense = [value > 1.0 for value in densities]
        if not any(too_dense):
            return densities
        is_dense = [d or t for d, t in zip(is_dense, too_dense, strict=True)]


def largest_remainder(parts: Sequence[float], total: int, limits: Sequence[int]) -> list[int]:
    """Round `parts` to integers that add up to `total`; the largest fractions are rounded up.

    >>> largest_remainder([1.2, 2.7, 3.1], 7, [9, 9, 9])
    [1, 3, 3]
    """
    counts = [min(int(part), limit) for part, limit in zip(parts, limits, strict=True)]
    order = sorted(range(len(parts)), key=lambda i: int(parts[i]) - parts[i])
    missing = total - sum(counts)
    while missing:  # at most twice: rounding moves the sum by less than one for each part
        for i in order if missing > 0 else reversed(order):
            change = (missing > 0) - (missing < 0)
            if missing and 0 <= counts[i] + change <= limits[i]:
                counts[i] += change
                missing -= change
    return counts


def parse_pattern(pattern: str, scope: str | None = None, min_density: float = 0.0) -> Pattern:
    """Return the pattern that a user spelled "unstructured" or "n:m".

    Raises:
        ValueError: an unknown spelling or scope, n and m out of 0 < n < m, n:m with a scope, or a
            minimal density without the scope "global".
    """
    if min_density and scope != "global":
        raise ValueError(
            f"min_density must come with scope='global', where a matrix could lose all weights; "
            f"got {min_density:g}. Leave it out."
        )
    match = re.fullmatch(r"(\d+):(\d+)", str(pattern))
    if match is None:
        if pattern != "unstructured":
            raise ValueError(
                f"pattern must be 'unstructured' or 'n:m'; got '{pattern}'. "
                "Write n:m as the number kept of every m weights, for example '2:4'."
            )
        if scope is not None and scope not in SCOPES:
            raise ValueError(
                f"scope must be one of {', '.join(SCOPES)}; got '{scope}'. Omit it for 'layer'."
            )
        return Unstructured(scope or "layer", min_density)
    n, m = int(match[1]), int(match[2])
    if not 0 < n < m:
        raise ValueError(
            f"pattern n:m must have 0 < n < m; got '{pattern}'. "
            "n weights are kept of every m, for example '2:4'."
        )
    if scope is not None:
        raise ValueError(
            f"scope must be left out with an n:m pattern; got '{scope}' with '{pattern}'. "
            "n:m fixes the sparsity of every group of weights."
        )
    return NM(n, m)


def find_target(sparsity: float | None, pattern: Pattern) -> float:
    """Return the target sparsity s_t in [0, 1): exactly (m - n) / m for n:m, else the given one.

    Raises:
        ValueError: neither says how sparse, or the two contradict each other.
    """
    if not isinstance(pattern, NM):
        if sparsity is None:
            raise ValueError(
                "sparsity must be given for pattern 'unstructured'; got None. "
                "Pass a fraction, for example 0.9, or an n:m pattern such as '2:4'."
            )
        check_sparsity(sparsity)
        return sparsity
    if sparsity is not None:
        check_sparsity(sparsity)
        if not math.isclose(sparsity, pattern.sparsity, abs_tol=0.005):
            raise ValueError(
                f"sparsity must be {pattern.sparsity:.4g} with pattern '{pattern}', or be left "
                f"out; got {sparsity!r}. Drop one of the two."
            )
    return pattern.sparsity
