r"""Optimizer step -> sparsity: levels, the climbs to them, and the edges where the cycles begin.

Cyclical pruning (Srinivas et al. 2022, https://arxiv.org/abs/2202.01290) lets sparsity climb to the
target, fall back and climb again. With T optimizer steps, k cycles and t = 1..T finished steps:

    e_c  = round(c T / k)                       cycle c owns the steps e_c + 1 .. e_(c+1)
    u    = t - 1 - e_c                          position in the cycle; u = 0 is its edge
    x    = min(1, u / L')                       L' steps of climb, the rest is fine-tuning
    s(t) = s_t l_c (1 - (1 - d_c) (1 - r(x)))   r: the ramp; l_c: the cycle's level

The level l_c is the share of the target s_t that a cycle climbs to (see `LEVELS`), and d_c is the
share of it with which the cycle starts: the initial sparsity in the first cycle, and the reset
ratio times the level of the cycle before in a later one. In the paper every level is 1 and the
first cycle starts at 0, so that s = s_t + (s_init - s_t)(1 - x)^3 for the cubic ramp.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from hf_cyclprune.checks import (
    check_count,
    check_fraction,
    check_known,
    check_sparsity,
    use_json_values_,
)
from hf_cyclprune.pruning.ramps import RAMPS, check_ramp

LEVELS: dict[str, Callable[[int, int, float], float]] = {
    "constant": lambda cycle, num_cycles, rise: 1.0,
    "rising": lambda cycle, num_cycles, rise: rise,
    "stairs": lambda cycle, num_cycles, rise: (cycle + 1) / num_cycles,
    "last": lambda cycle, num_cycles, rise: float(cycle == num_cycles - 1),
}
"""What the cycles climb to, as a share of the way from the initial sparsity to the target.

Each takes the cycle (0..k-1), their number k, and the height in [0, 1] of one climb over the run:

- "constant": every cycle climbs to the target;
- "rising": the level itself climbs once over the whole run, and the cycles dip below it;
- "stairs": every cycle climbs as far again as the one before;
- "last": only the last cycle climbs.
"""

RECOMPUTE = ("climb", "edges", "always", "first_cycle", "never")
"""When masks are recomputed: see `Schedule.is_pruning_step`."""


def cycle_edges(total_steps: int, num_cycles: int) -> tuple[int, ...]:
    """The steps finished before each cycle, and T: e_c = round(c T / k) for c = 0..k.

    >>> cycle_edges(10, 4)
    (0, 2, 5, 8, 10)
    """
    return tuple(round(c * total_steps / num_cycles) for c in range(num_cycles + 1))


@dataclass(frozen=True)
class Schedule:
    """How sparse the model must be after optimizer step t, and at which steps masks are recomputed.

    Pure: it has no state and knows no model. Every climb ends inside its cycle, so that every run
    ends at exactly `sparsity`, and with constant levels every cycle does.

    >>> schedule = Schedule(sparsity=0.8, total_steps=20, num_cycles=2)
    >>> [round(schedule.sparsity_at(t), 3) for t in (1, 5, 9, 10, 11, 19, 20)]
    [0.0, 0.7, 0.8, 0.8, 0.4, 0.8, 0.8]

    Args:
        sparsity: the target s_t, a fraction of the target weights in [0, 1).
        total_steps: T, optimizer steps of the whole run, at least `num_cycles`.
        num_cycles: k.
        reset_ratio: in [0, 1]; sparsity at a later edge, as a fraction of that before it. None
            chooses 0.95 up to a target of 90 %; above it what lets as many of the weights return,
            compared with those that the target keeps, as 0.95 does at 90 %: see `reset`.
        ramp: a name in `RAMPS`.
        ramp_ratio: in [0, 1]; the share of a cycle in which it climbs to its level.
        levels: a name in `LEVELS`.
        rise_ratio: in [0, 1], rising levels only; the share of the run in which the level climbs.
        interval_steps: optimizer steps between two pruning steps of a climb (the paper's Delta t);
            None chooses clamp(round(L' / 40), 1, 100), with the cycle's length where L' is 0; with
            rising levels 200 of them in the climb of the run.
        recompute: a name in `RECOMPUTE`.
        initial_sparsity: in [0, sparsity]; where the first climb begins.

    Raises:
        ValueError: a value out of its range, or options that contradict each other.
    """

    sparsity: float
    total_steps: int
    num_cycles: int = 1
    reset_ratio: float | None = 0.5
    ramp: str = "cubic"
    ramp_ratio: float = 0.8
    levels: str = "constant"
    rise_ratio: float = 0.8
    interval_steps: int | None = None
    recompute: str = "climb"
    initial_sparsity: float = 0.0

    def __post_init__(self) -> None:
        use_json_values_(self)
        check_sparsity(self.sparsity)
        check_count("num_cycles", self.num_cycles)
        for name in ("ramp_ratio", "rise_ratio", "initial_sparsity"):
            check_fraction(name, getattr(self, name))
        if self.reset_ratio is not None:
            check_fraction("reset_ratio", self.reset_ratio)
        if self.interval_steps is not None:
            check_count("interval_steps", self.interval_steps)
        check_ramp(self.ramp)
        check_known("levels", self.levels, LEVELS)
        check_known("recompute", self.recompute, RECOMPUTE)
        self._check_together()

    def _check_together(self) -> None:
        if self.num_cycles > self.total_steps:
            raise ValueError(
                f"num_cycles must not exceed the run's optimizer steps ({self.total_steps}); got "
                f"{self.num_cycles}. Train longer or ask for fewer cycles."
            )
        if self.initial_sparsity > self.sparsity:
            raise ValueError(
                f"initial_sparsity must not exceed the sparsity of {self.sparsity:g}; got "
                f"{self.initial_sparsity:g}. Pass a smaller one."
            )
        is_frozen = self.recompute == "first_cycle" and self.num_cycles > 1
        if is_frozen and (self.reset < 1 or self.levels != "constant"):
            raise ValueError(
                "reset_ratio must be 1 and levels 'constant' with recompute='first_cycle', which "
                f"keeps the masks of the first cycle; got {self.reset:g} and "
                f"'{self.levels}'. Choose another recompute, or these two."
            )

    @cached_property
    def edges(self) -> tuple[int, ...]:
        """Steps finished before each cycle, then T; k + 1 integers."""
        return cycle_edges(self.total_steps, self.num_cycles)

    @property
    def keeps_zeros(self) -> bool:
        """Whether the masks are the zeros that the weights have at the start."""
        return self.recompute == "never"

    def cycle(self, t: int) -> int:
        """The cycle, 0..k-1, that owns step t."""
        return min(max(bisect_left(self.edges, t) - 1, 0), self.num_cycles - 1)

    def cycle_length(self, cycle: int) -> int:
        """Optimizer steps of a cycle."""
        return self.edges[cycle + 1] - self.edges[cycle]

    def is_cycle_end(self, t: int) -> bool:
        """Whether step t is the last one of its cycle."""
        return t > 0 and t == self.edges[self.cycle(t) + 1]

    def climb_length(self, cycle: int) -> int:
        """L': u = 0..L' is the climb of this cycle; at most the cycle's length - 1."""
        is_flat = (self.levels == "rising" and cycle == 0) or (
            self.recompute == "first_cycle" and cycle > 0
        )
        return 0 if is_flat else _climb(self.ramp_ratio, self.cycle_length(cycle))

    @cached_property
    def rise_length(self) -> int:
        """Steps after which rising levels are at the target; 0 for other levels."""
        return _climb(self.rise_ratio, self.total_steps) if self.levels == "rising" else 0

    @cached_property
    def reset(self) -> float:
        """The reset ratio in force: the one given, or max(0.95, 1 - 0.45 (1 - s_t) / s_t).

        >>> [round(Schedule(s, 100, reset_ratio=None).reset, 4) for s in (0.5, 0.9, 0.95, 0.99)]
        [0.95, 0.95, 0.9763, 0.9955]
        """
        if self.reset_ratio is not None:
            return self.reset_ratio
        kept = 1.0 - self.sparsity
        return max(0.95, 1.0 - 0.45 * kept / self.sparsity) if self.sparsity else 0.95

    @cached_property
    def interval(self) -> int:
        """Steps between two pruning steps of a climb."""
        if self.interval_steps is not None:
            return self.interval_steps
        length = round(self.total_steps / self.num_cycles)
        typical = (_climb(self.ramp_ratio, length) or length) / 40
        if self.levels == "rising":
            typical = self.rise_length / 200
        return min(max(round(typical), 1), 100)

    def sparsity_at(self, t: int) -> float:
        """s(t) after optimizer step t in 1..T; exactly `sparsity` once the climb is over."""
        if self.keeps_zeros:
            return self.sparsity
        cycle = self.cycle(t)
        r = RAMPS[self.ramp](_position(t - 1 - self.edges[cycle], self.climb_length(cycle)))
        level = self._level(cycle, t)
        if level == 0.0:
            return 0.0
        if cycle == 0:
            start = self._first / level
        else:
            start = self.reset * (self._level(cycle - 1, t) / level)
        return self.sparsity * level * (1.0 - (1.0 - start) * (1.0 - r))

    @cached_property
    def _first(self) -> float:
        """The initial sparsity as a share of the target."""
        return self.initial_sparsity / self.sparsity if self.sparsity else 0.0

    def _level(self, cycle: int, t: int) -> float:
        """l_c, in [0, 1]."""
        rise = RAMPS[self.ramp](_position(t - 1, self.rise_length))
        share = LEVELS[self.levels](cycle, self.num_cycles, rise)
        return 1.0 - (1.0 - self._first) * (1.0 - share) if self._first else share

    def is_pruning_step(self, t: int) -> bool:
        """Whether masks are recomputed after step t, as `recompute` says.

        - "climb": at every edge, at the last step of every climb, and every `interval` steps in
          between, but not in the fine-tuning that ends a cycle;
        - "edges": at the first step of the run, and at those edges and ends of climbs where the
          sparsity changes;
        - "always": as "climb", and every `interval` steps of the fine-tuning too;
        - "first_cycle": as "climb" in the first cycle, and not after it;
        - "never": at no step.
        """
        cycle = self.cycle(t)
        if self.keeps_zeros or (self.recompute == "first_cycle" and cycle > 0):
            return False
        u, climb = t - 1 - self.edges[cycle], self.climb_length(cycle)
        is_end = u in (0, climb) or t - 1 == self.rise_length
        if self.recompute == "edges":
            return is_end and (t == 1 or self.sparsity_at(t) != self.sparsity_at(t - 1))
        is_climbing = u < climb or t - 1 < self.rise_length or self.recompute == "always"
        return is_end or (is_climbing and u % self.interval == 0)


def _climb(ratio: float, length: int) -> int:
    """Steps of a climb over `length` steps: it ends inside them."""
    return min(round(ratio * length), length - 1)


def _position(u: int, climb: int) -> float:
    """x = min(1, u / L'); a climb of no steps is over at once."""
    return 1.0 if u >= climb else u / climb
