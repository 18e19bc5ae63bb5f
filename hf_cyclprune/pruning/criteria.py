"""Weight (and gradient) -> scores: one number per weight, the lowest is pruned first.

To add one, register a function of the weight, or of weight and gradient if it needs both:

    @criterion("square", is_signed=False, is_elementwise=True)
    def square(weight: Tensor) -> Tensor:
        return weight**2

or, where scores depend on more than that, a subclass of `Criterion`.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

CRITERIA: dict[str, type["Criterion"]] = {}
"""Every criterion under the name that `PruningConfig.criterion` takes."""

_Scorer = TypeVar("_Scorer", bound=Callable[..., Any])


def criterion(name: str, **traits: bool) -> Callable[[_Scorer], _Scorer]:
    """Register a function or a subclass of `Criterion` under `name`.

    Args:
        name: what `PruningConfig(criterion=...)` calls it.
        **traits: for a function: `is_signed`, `is_elementwise`, `needs_gradient` (see `Criterion`).
    """

    def register(scorer: _Scorer) -> _Scorer:
        made: Any = scorer
        is_class = isinstance(scorer, type) and issubclass(scorer, Criterion)
        CRITERIA[name] = made if is_class else _from_function(made, traits)
        return scorer

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
    """Whether `score` reads the gradient."""

    def begin_cycle(self, cycle: int) -> None:
        """Called before the scores of a pruning step in this cycle, 0..k-1."""

    def score(self, name: str, weight: Tensor, gradient: Tensor | None = None) -> Tensor:
        """Return scores shaped as `weight`, in any floating dtype; they are compared in fp32.

        Args:
            name: of the weight in the model.
            weight: the values after the optimizer's step.  # (O, I), or some rows of it
            gradient: the one that the step was taken with, shaped as `weight`; None unless
                `needs_gradient` is True.
        """
        raise NotImplementedError


def _from_function(function: Callable[..., Tensor], traits: dict[str, bool]) -> type[Criterion]:
    """A criterion that asks a function of the weight, or of weight and gradient."""

    def score(self: Criterion, name: str, weight: Tensor, gradient: Tensor | None = None) -> Tensor:
        return function(weight, gradient) if self.needs_gradient else function(weight)

    members = {"score": score, "__doc__": function.__doc__, **traits}
    return type(function.__name__, (Criterion,), members)


@criterion("magnitude", is_signed=False, is_elementwise=True)
def magnitude(weight: Tensor) -> Tensor:
    """|w| (Han et al. 2015, https://arxiv.org/abs/1506.02626)."""
    return weight.abs()


@criterion("gradient", is_signed=False, is_elementwise=True, needs_gradient=True)
def gradient_magnitude(weight: Tensor, gradient: Tensor) -> Tensor:
    """|g|, the gradient that the last optimizer step was taken with."""
    return gradient.abs()


@criterion("taylor", is_signed=False, is_elementwise=True, needs_gradient=True)
def taylor(weight: Tensor, gradient: Tensor) -> Tensor:
    """|w g|, the first-order change of the loss when w is removed (https://arxiv.org/abs/1611.06440)."""
    return (weight * gradient).abs()


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

    def score(self, name: str, weight: Tensor, gradient: Tensor | None = None) -> Tensor:
        seed = zlib.crc32(f"{self.seed}/{self.cycle}/{name}".encode())
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(weight.shape, generator=generator).to(weight.device)


class FirstCycle(Criterion):
    """One criterion in the first cycle and another one after it (the row "sculpt" of METHODS).

    Args:
        first: for the first cycle.
        then: for the others, and for pruning without training.
    """

    def __init__(self, first: Criterion, then: Criterion) -> None:
        super().__init__(seed=then.seed)
        self._first, self._then = first, then
        self._use(then)

    def _use(self, now: Criterion) -> None:
        self._now = now
        self.is_signed, self.is_elementwise = now.is_signed, now.is_elementwise
        self.needs_gradient = now.needs_gradient

    def begin_cycle(self, cycle: int) -> None:
        self._use(self._first if cycle == 0 else self._then)
        self._now.begin_cycle(cycle)

    def score(self, name: str, weight: Tensor, gradient: Tensor | None = None) -> Tensor:
        return self._now.score(name, weight, gradient)
