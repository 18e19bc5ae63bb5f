"""The zeros of target weights: counted in each of them, and added up over groups of them."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_cyclprune.pruning.blocks import input_last
from hf_cyclprune.pruning.patterns import NM

MOST_ZEROS_BY_CHANCE = 0.05
"""The share of zeros above which weights were pruned: training leaves fewer."""

_FEED_FORWARD = re.compile(r"ffn|mlp|feed|intermediate|^output|fc\d|lin(ear)?\d", re.IGNORECASE)


@dataclass(frozen=True)
class WeightReport:
    """The counts of one target weight."""

    name: str
    layer: int | None
    """Index of the block that holds it; None outside of the blocks."""
    kind: str
    """Its name inside the block, such as "attention.self.query"."""
    shape: tuple[int, ...]
    num_zeros: int
    patterns: tuple[str, ...]
    """The n:m patterns that every group of it satisfies."""
    output_error_masked: float | None = None
    """||X W'^T - X W^T|| / ||X W^T|| on the calibration inputs X, for the dense W and W' the same
    with zeros; None without calibration, and if the layer got no input."""
    output_error: float | None = None
    """The same, after the kept weights were solved again."""

    @property
    def num_weights(self) -> int:
        """Number of its elements."""
        return int(torch.Size(self.shape).numel())

    @property
    def sparsity(self) -> float:
        """Fraction of its elements that is zero."""
        return self.num_zeros / self.num_weights

    @property
    def part(self) -> str:
        """The part of a block that holds it: "attention", "feed-forward" or "other"."""
        if self.layer is None:
            return "other"
        if "att" in self.kind.lower():
            return "attention"
        return "feed-forward" if _FEED_FORWARD.search(self.kind) else "other"


@dataclass(frozen=True)
class WeightGroup:
    """Several target weights, and the sums of their counts."""

    weights: tuple[WeightReport, ...]

    @property
    def num_weights(self) -> int:
        """Number of all elements."""
        return sum(weight.num_weights for weight in self.weights)

    @property
    def num_zeros(self) -> int:
        """Number of all zeros."""
        return sum(weight.num_zeros for weight in self.weights)

    @property
    def sparsity(self) -> float:
        """Fraction of all elements that is zero."""
        return self.num_zeros / self.num_weights

    @property
    def patterns(self) -> tuple[str, ...]:
        """The n:m patterns that all of these weights satisfy."""
        common = set.intersection(*(set(weight.patterns) for weight in self.weights))
        return tuple(p for p in self.weights[0].patterns if p in common)

    @property
    def mean_output_errors(self) -> tuple[float, float] | None:
        """Means of `output_error_masked` and of `output_error`; None if no weight has them."""
        pairs = [(w.output_error_masked, w.output_error) for w in self.weights]
        known = [(a, b) for a, b in pairs if a is not None and b is not None]
        if not known:
            return None
        masked, solved = (sum(column) / len(known) for column in zip(*known, strict=True))
        return masked, solved

    def by_layer(self) -> dict[str, "WeightGroup"]:
        """Return the weights of each block; those outside of the blocks are under "none"."""
        return self.grouped(lambda w: "none" if w.layer is None else f"layer {w.layer}")

    def by_kind(self) -> dict[str, "WeightGroup"]:
        """Return the weights of each kind of matrix."""
        return self.grouped(lambda w: w.kind)

    def grouped(self, key: Callable[[WeightReport], str]) -> dict[str, "WeightGroup"]:
        """Return the weights of each value of `key`, in the order of the first."""
        groups: dict[str, list[WeightReport]] = {}
        for weight in self.weights:
            groups.setdefault(key(weight), []).append(weight)
        return {name: WeightGroup(tuple(weights)) for name, weights in groups.items()}


def measure_weight(
    name: str,
    weight: Tensor,
    patterns: Sequence[NM],
    output_errors: tuple[float | None, float | None] = (None, None),
) -> WeightReport:
    """Count the zeros of one target weight, and check which of the patterns it satisfies."""
    is_kept = input_last(weight) != 0
    layer, kind = split_name(name)
    return WeightReport(
        name=name,
        layer=layer,
        kind=kind,
        shape=tuple(weight.shape),
        num_zeros=weight.numel() - int(is_kept.sum()),
        patterns=tuple(str(p) for p in patterns if satisfies(is_kept, p)),
        output_error_masked=output_errors[0],
        output_error=output_errors[1],
    )


def count_parameters(parameters: Iterable[Tensor]) -> tuple[int, int]:
    """Return the number of all parameters of a model, and how many of them are zero."""
    sizes = [(p.numel(), p.numel() - int(p.detach().count_nonzero())) for p in parameters]
    total, zeros = (sum(column) for column in zip(*sizes, strict=True))
    return total, zeros


def satisfies(is_kept: Tensor, pattern: NM) -> bool:
    """Return whether at most n of every m consecutive entries of each row are kept.  # (O, I)"""
    if is_kept.shape[-1] % pattern.m:
        return False
    groups = is_kept.reshape(-1, pattern.m)  # (O * I/M, M)
    return bool((groups.sum(-1) <= pattern.n).all())


def split_name(name: str) -> tuple[int | None, str]:
    """Split the name of a weight into the index of its block and its name inside the block.

    >>> split_name("bert.encoder.layer.3.attention.self.query.weight")
    (3, 'attention.self.query')
    """
    match = re.search(r"\.(\d+)\.(.+?)(?:\.weight)?$", name)
    return (int(match[1]), match[2]) if match else (None, name.removesuffix(".weight"))
