r"""Optimizer step -> sparsity: an envelope, dips in it, and the edges where the cycles begin.

Cyclical pruning (Srinivas et al. 2022, https://arxiv.org/abs/2202.01290) lets sparsity climb to the
target, fall back and climb again. With T optimizer steps, k cycles and t = 1..T finished steps:

    e_c  = round(c T / k)                   cycle c owns the steps e_c + 1 .. e_(c+1)
    u    = t - 1 - e_c                      position in the cycle; u = 0 is its edge
    x    = min(1, u / L')                   L' steps of climb, the rest is fine-tuning
    s(t) = E(t) (1 - (1 - d_c) (1 - r(x)))  r: the ramp; d_c: what is left of E at the edge

The envelope E is what a cycle climbs to. "constant" (the paper): E = s_t, d_0 = 0, later d_c is the
reset ratio, so that s = s_t + (s_init - s_t)(1 - x)^3 for the cubic ramp. "rising": E itself climbs
once over the whole run, and each later cycle starts with a dip below it; with a reset ratio of 1
nothing dips and this is gradual pruning (Zhu & Gupta 2017, https://arxiv.org/abs/1710.01878).
"""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from hf_cyclprune.checks import (
    check_count,
    check_fraction,
    check_known,
    check_sparsity,
)

RAMPS: dict[str, Callable[[float], float]] = {}
"""Shapes of a climb, [0, 1] -> [0, 1], each with r(1) = 1 exactly."""

ENVELOPES = ("constant", "rising")


def ramp(name: str) -> Callable[[Callable[[float], float]], Callable[[float], float]]:
    """Register a ramp under `name`; it must be monotone and reach exactly 1 at x = 1."""

    def register(function: Callable[[float], float]) -> Callable[[float], float]:
        RAMPS[name] = function
        return function

    return register


@ramp("cubic")
def cubic(x: float) -> float:
    """Steep first, flat last; https://arxiv.org/abs/1710.01878, equation 1.

    >>> 0.5 * cubic(10 / 20)
    0.4375
    """
    return 1.0 - (1.0 - x) ** 3


@ramp("linear")
def linear(x: float) -> float:
    """The same gain at every step."""
    return x


@ramp("cosine")
def cosine(x: float) -> float:
    """Flat at both ends."""
    return 1.0 if x >= 1.0 else (1.0 - math.cos(math.pi * x)) / 2.0


@ramp("step")
def step(x: float) -> float:
    """Nothing until the climb's end, then everything."""
    return 1.0 if x >= 1.0 else 0.0


@ramp("constant")
def constant(x: float) -> float:
    """Everything at once, at the edge."""
    return 1.0


def cycle_edges(total_steps: int, num_cycles: int) -> tuple[int, ...]:
    """The steps finished before each cycle, and T: e_c = round(c T / k) for c = 0..k.

    >>> cycle_edges(10, 4)
    (0, 2, 5, 8, 10)
    """
    return tuple(round(c * total_steps / num_cycles) for c in range(num_cycles + 1))


@dataclass(frozen=True)
class Schedule:
    """How sparse the model must be after optimizer step t, and at which steps masks are recomputed.

    Pure: no state, no model. Every cycle's climb ends inside the cycle, so a cycle on the constant
    envelope, and every run, ends at exactly `sparsity`.

    >>> schedule = Schedule(sparsity=0.8, total_steps=20, num_cycles=2)
    >>> [round(schedule.sparsity_at(t), 3) for t in (1, 5, 9, 10, 11, 19, 20)]
    [0.0, 0.7, 0.8, 0.8, 0.4, 0.8, 0.8]

    Args:
        sparsity: the target s_t, a fraction of the target weights in [0, 1).
        total_steps: T, optimizer steps of the whole run, at least `num_cycles`.
        num_cycles: k.
        reset_ratio: in [0, 1]; sparsity at a later edge, as a fraction of the envelope.
        ramp: a name in `RAMPS`.
        ramp_ratio: in [0, 1]; the climb's share of a cycle (rising: the envelope's, of the run).
        envelope: "constant" or "rising".
        dip_ratio: in [0, 1], rising only; a dip's share of its cycle.
        interval_steps: optimizer steps between two pruning steps of a climb (the paper's Delta t);
            None chooses clamp(round(L' / 40), 1, 100).

    Raises:
        ValueError: a value out of its range.
    """

    sparsity: float
    total_steps: int
    num_cycles: int = 1
    reset_ratio: float = 0.5
    ramp: str = "cubic"
    ramp_ratio: float = 0.8
    envelope: str = "constant"
    dip_ratio: float = 0.3
    interval_steps: int | None = None

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        check_count("num_cycles", self.num_cycles)
        for name in ("reset_ratio", "ramp_ratio", "dip_ratio"):
            check_fraction(name, getattr(self, name))
        if self.interval_steps is not None:
            check_count("interval_steps", self.interval_steps)
        check_known("ramp", self.ramp, RAMPS)
        check_known("envelope", self.envelope, ENVELOPES)
        if self.num_cycles > self.total_steps:
            raise ValueError(
                f"num_cycles must not exceed the number of optimizer steps ({self.total_steps}); "
                f"got {self.num_cycles}. Train longer or ask for fewer cycles."
            )

    @cached_property
    def edges(self) -> tuple[int, ...]:
        """Steps finished before each cycle, then T; k + 1 integers."""
        return cycle_edges(self.total_steps, self.num_cycles)

    @property
    def is_rising(self) -> bool:
        return self.envelope == "rising"

    def cycle(self, t: int) -> int:
        """The cycle, 0..k-1, that owns step t."""
        return min(max(bisect_left(self.edges, t) - 1, 0), self.num_cycles - 1)

    def cycle_length(self, cycle: int) -> int:
        return self.edges[cycle + 1] - self.edges[cycle]

    def is_cycle_end(self, t: int) -> bool:
        """Whether step t is the last one of its cycle."""
        return t > 0 and t == self.edges[self.cycle(t) + 1]

    def climb_length(self, cycle: int) -> int:
        """L': u = 0..L' is the climb of this cycle; at most the cycle's length - 1."""
        ratio = self.dip_ratio if self.is_rising else self.ramp_ratio
        if self.is_rising and cycle == 0:
            ratio = 0.0  # the envelope itself starts at 0: nothing to climb back to
        return _climb(ratio, self.cycle_length(cycle))

    @cached_property
    def envelope_length(self) -> int:
        """Steps after which the envelope is at the target; 0 if it is constant."""
        return _climb(self.ramp_ratio, self.total_steps) if self.is_rising else 0

    @cached_property
    def interval(self) -> int:
        """Steps between two pruning steps of a climb."""
        if self.interval_steps is not None:
            return self.interval_steps
        typical = _climb(self.ramp_ratio, round(self.total_steps / self.num_cycles))
        return min(max(round(typical / 40), 1), 100)

    def sparsity_at(self, t: int) -> float:
        """s(t) after optimizer step t in 1..T; exactly `sparsity` once the climb is over."""
        cycle = self.cycle(t)
        r = RAMPS[self.ramp]
        x = _position(t - 1 - self.edges[cycle], self.climb_length(cycle))
        first = 1.0 if self.is_rising else 0.0
        kept_at_edge = first if cycle == 0 else self.reset_ratio
        level = r(_position(t - 1, self.envelope_length)) if self.is_rising else 1.0
        return self.sparsity * level * (1.0 - (1.0 - kept_at_edge) * (1.0 - r(x)))

    def is_pruning_step(self, t: int) -> bool:
        """Whether masks are recomputed after step t.

        True at every edge, at the last step of every climb, and every `interval` steps in between;
        False in the fine-tuning that ends a cycle.
        """
        cycle = self.cycle(t)
        u, climb = t - 1 - self.edges[cycle], self.climb_length(cycle)
        if u == 0 or u == climb or t - 1 == self.envelope_length:
            return True
        is_climbing = u < climb or t - 1 < self.envelope_length
        return is_climbing and u % self.interval == 0


def _climb(ratio: float, length: int) -> int:
    """Steps of a climb over `length` steps: it ends inside them."""
    return min(round(ratio * length), length - 1)


def _position(u: int, climb: int) -> float:
    """x = min(1, u / L'); a climb of no steps is over at once."""
    return 1.0 if u >= climb else u / climb
