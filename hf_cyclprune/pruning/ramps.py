"""The shapes of a climb; to add one, decorate a function of x in [0, 1] with `ramp`."""

import math
from collections.abc import Callable

from hf_cyclprune.checks import check_fraction, check_known

RAMPS: dict[str, Callable[[float], float]] = {}
"""Shapes of a climb, [0, 1] -> [0, 1], each with r(1) = 1 exactly."""


def ramp(name: str) -> Callable[[Callable[[float], float]], Callable[[float], float]]:
    """Register a ramp under `name`; it must be monotone and reach exactly 1 at x = 1."""

    def register(function: Callable[[float], float]) -> Callable[[float], float]:
        RAMPS[name] = function
        return function

    return register


def check_ramp(name: object) -> None:
    """Raise a ValueError unless there is a ramp of this name, and it climbs to 1 inside [0, 1]."""
    check_known("ramp", name, RAMPS)
    for x in (0.0, 0.5, 1.0):
        share = RAMPS[str(name)](x)
        check_fraction(f"ramp '{name}' at {x}", share)
    if share != 1.0:
        raise ValueError(
            f"ramp '{name}' must be 1 at 1.0, where the climb ends; got {share!r}. Correct it."
        )


@ramp("cubic")
def cubic(x: float) -> float:
    """Climb steeply first and slowly last; https://arxiv.org/abs/1710.01878, equation 1.

    >>> 0.5 * cubic(10 / 20)
    0.4375
    """
    return 1.0 - (1.0 - x) ** 3


@ramp("linear")
def linear(x: float) -> float:
    """Climb by the same amount at every step."""
    return x


@ramp("cosine")
def cosine(x: float) -> float:
    """Climb slowly at both ends."""
    return 1.0 if x >= 1.0 else (1.0 - math.cos(math.pi * x)) / 2.0


@ramp("logistic")
def logistic(x: float) -> float:
    """Climb along the S-shaped curve of one-cycle pruning, with alpha = 14 and beta = 5.

    Hubens et al. 2022, https://arxiv.org/abs/2107.02086. It begins at 0.007, not at 0.

    >>> round(logistic(0.0), 4), round(logistic(5 / 14), 2), logistic(1.0)
    (0.0067, 0.5, 1.0)
    """
    alpha, beta = 14.0, 5.0
    return (1.0 + math.exp(beta - alpha)) / (1.0 + math.exp(beta - alpha * x))


@ramp("step")
def step(x: float) -> float:
    """Stay at the start until the climb ends, then jump."""
    return 1.0 if x >= 1.0 else 0.0


@ramp("constant")
def constant(x: float) -> float:
    """Jump at the edge."""
    return 1.0
