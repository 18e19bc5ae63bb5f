"""Weight (and gradient) -> scores: one number per weight, the lowest is pruned first.

To add one, write a small dataclass with a `score` method and register it:

    @criterion("magnitude")
    @dataclass
    class Magnitude(Criterion):
        is_signed = False
        is_elementwise = True

        def score(self, name, weight):
            return weight.abs()
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

CRITERIA: dict[str, type["Criterion"]] = {}


def criterion(name: str) -> Callable[[type["Criterion"]], type["Criterion"]]:
    """Register a criterion class under `name`."""

    def register(cls: type["Criterion"]) -> type["Criterion"]:
        CRITERIA[name] = cls
        return cls

    return register


@dataclass
class Criterion:
    """Scores one weight at a time, on demand; a pruning step asks several times for each.

    Between two optimizer steps the same question must get the same answer.
    """

    seed: int = 0
    """Only read by criteria that draw numbers; the same on every rank."""

    is_signed = True
    """Whether a score may have its sign bit set; False makes the selection faster."""
    is_elementwise = False
    """Whether `score` may be given a few rows of a weight at a time; True saves memory and time."""
    needs_gradient = False
    """Whether `score` reads `weight.grad`."""

    def begin_cycle(self, cycle: int) -> None:
        """Called before the scores of a pruning step in this cycle, 0..k-1."""

    def score(self, name: str, weight: Tensor) -> Tensor:
        """Scores shaped as `weight`, in any floating dtype; compared in fp32."""
        raise NotImplementedError


@criterion("magnitude")
@dataclass
class Magnitude(Criterion):
    """|w| (Han et al. 2015, https://arxiv.org/abs/1506.02626)."""

    is_signed = False
    is_elementwise = True

    def score(self, name: str, weight: Tensor) -> Tensor:
        return weight.abs()


@criterion("gradient")
@dataclass
class Gradient(Criterion):
    """|g|, the gradient that the last optimizer step was taken with."""

    is_signed = False
    is_elementwise = True
    needs_gradient = True

    def score(self, name: str, weight: Tensor) -> Tensor:
        return _gradient(name, weight).abs()


@criterion("taylor")
@dataclass
class Taylor(Criterion):
    """|w g|, the first-order change of the loss when w is removed (https://arxiv.org/abs/1611.06440)."""

    is_signed = False
    is_elementwise = True
    needs_gradient = True

    def score(self, name: str, weight: Tensor) -> Tensor:
        return (weight * _gradient(name, weight)).abs()


@criterion("random")
@dataclass
class Random(Criterion):
    """Uniform in [0, 1), drawn anew in each cycle: the baseline that knows nothing.

    So after an edge, where kept weights stay, the next pruning step ranks all of them anew.
    Depends on the seed, the weight's name and the cycle only: not on the device or the rank.
    """

    is_signed = False
    cycle = 0

    def begin_cycle(self, cycle: int) -> None:
        self.cycle = cycle

    def score(self, name: str, weight: Tensor) -> Tensor:
        seed = zlib.crc32(f"{self.seed}/{self.cycle}/{name}".encode())
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(weight.shape, generator=generator).to(weight.device)


def _gradient(name: str, weight: Tensor) -> Tensor:
    if weight.grad is None:
        raise ValueError(
            f"criterion needs a gradient of every target weight; got none for '{name}'. "
            "Use criterion='magnitude', or leave this weight out with ignore=."
        )
    return weight.grad
