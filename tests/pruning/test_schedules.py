import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_cyclprune import PruningConfig
from hf_cyclprune.pruning.ramps import RAMPS, cubic
from hf_cyclprune.pruning.schedules import LEVELS, RECOMPUTE, Schedule, cycle_edges

ratios = st.one_of(st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.floats(0, 1))


@st.composite
def schedules(draw, **fixed):
    total_steps = draw(st.integers(1, 150))
    options = {
        "sparsity": draw(st.floats(0, 0.999, allow_subnormal=False)),
        "num_cycles": draw(st.integers(1, min(total_steps, 9))),
        "reset_ratio": draw(ratios),
        "ramp": draw(st.sampled_from(list(RAMPS))),
        "ramp_ratio": draw(ratios),
        "levels": draw(st.sampled_from(list(LEVELS))),
        "rise_ratio": draw(ratios),
        "interval_steps": draw(st.one_of(st.none(), st.integers(1, 40))),
        "recompute": draw(st.sampled_from(RECOMPUTE)),
        "initial_sparsity": 0.0,
    }
    options["initial_sparsity"] = options["sparsity"] * draw(st.sampled_from([0.0, 0.0, 0.5, 1.0]))
    options |= fixed
    if options["recompute"] == "first_cycle":
        options |= {"reset_ratio": 1.0, "levels": "constant"}
    return Schedule(total_steps=total_steps, **{**options, **fixed})


def steps(schedule):
    return range(1, schedule.total_steps + 1)


class SlowTwin:
    """Section 1 of the method, step by step and in fractions."""

    def __init__(self, schedule, t):
        s, big_t, k = schedule, schedule.total_steps, schedule.num_cycles
        edges = [round(Fraction(c * big_t, k)) for c in range(k + 1)]
        self.c = max(c for c in range(k) if edges[c] < t)
        length = edges[self.c + 1] - edges[self.c]
        self.u = t - 1 - edges[self.c]
        ratio = s.ramp_ratio
        if s.levels == "rising" and self.c == 0:
            ratio = 0.0
        if s.recompute == "first_cycle" and self.c > 0:
            ratio = 0.0
        self.climb = min(round(ratio * length), length - 1)
        self.run_climb = min(round(s.rise_ratio * big_t), big_t - 1)
        self.t, self.s = t, s

    def ramp(self, u, climb):
        return RAMPS[self.s.ramp](1.0 if u >= climb else u / climb)

    def level(self, c):
        """The sparsity that cycle c climbs to; with rising levels, at this step."""
        s, k = self.s, self.s.num_cycles
        share = {"constant": 1.0, "stairs": (c + 1) / k, "last": float(c == k - 1)}.get(s.levels)
        if share is None:
            share = self.ramp(self.t - 1, self.run_climb)
        return s.initial_sparsity + (s.sparsity - s.initial_sparsity) * share

    def sparsity(self):
        if self.s.recompute == "never":
            return self.s.sparsity
        target = self.level(self.c)
        if self.c > 0:
            start = self.s.reset_ratio * self.level(self.c - 1)
        else:
            start = target if self.s.levels == "rising" else self.s.initial_sparsity
        return start + (target - start) * self.ramp(self.u, self.climb)

    def is_pruning_step(self):
        s = self.s
        if s.recompute == "never" or (s.recompute == "first_cycle" and self.c > 0):
            return False
        is_end = self.u in (0, self.climb)
        is_climbing = self.u < self.climb or s.recompute == "always"
        if s.levels == "rising":
            is_end = is_end or self.t - 1 == self.run_climb
            is_climbing = is_climbing or self.t - 1 < self.run_climb
        if s.recompute == "edges":
            return is_end and (self.t == 1 or s.sparsity_at(self.t) != s.sparsity_at(self.t - 1))
        return is_end or (is_climbing and self.u % s.interval == 0)


@given(schedules())
@settings(deadline=None, max_examples=60)
def test_every_step_has_the_sparsity_of_the_formula(schedule):
    for t in steps(schedule):
        assert schedule.sparsity_at(t) == pytest.approx(SlowTwin(schedule, t).sparsity(), abs=1e-12)


@given(schedules())
@settings(deadline=None, max_examples=60)
def test_pruning_steps_are_the_edges_the_climbs_ends_and_every_interval_between(schedule):
    due = [t for t in steps(schedule) if schedule.is_pruning_step(t)]
    assert due == [t for t in steps(schedule) if SlowTwin(schedule, t).is_pruning_step()]
    if schedule.recompute in ("climb", "always"):
        assert {edge + 1 for edge in schedule.edges[:-1]} <= set(due)


@given(schedules())
@settings(deadline=None, max_examples=60)
def test_the_last_pruning_step_of_a_run_demands_exactly_the_target(schedule):
    last = max((t for t in steps(schedule) if schedule.is_pruning_step(t)), default=None)
    if schedule.recompute == "never":
        assert last is None
        return
    assert schedule.sparsity_at(last) == schedule.sparsity
    assert schedule.sparsity_at(schedule.total_steps) == schedule.sparsity


@given(schedules(levels="constant", recompute="climb"))
@settings(deadline=None, max_examples=60)
def test_with_constant_levels_every_cycle_ends_with_masks_of_exactly_the_target(schedule):
    for end in schedule.edges[1:]:
        last = max(t for t in range(1, end + 1) if schedule.is_pruning_step(t))
        assert schedule.cycle(last) == schedule.cycle(end)
        assert schedule.sparsity_at(last) == schedule.sparsity_at(end) == schedule.sparsity


@given(schedules())
@settings(deadline=None, max_examples=60)
def test_sparsity_falls_at_edges_only_and_never_exceeds_the_target(schedule):
    values = [schedule.sparsity_at(t) for t in steps(schedule)]
    assert all(0 <= value <= schedule.sparsity for value in values)
    for t in steps(schedule):
        if t > 1 and t - 1 not in schedule.edges:
            assert values[t - 1] >= values[t - 2] - 1e-12


@given(schedules())
@settings(deadline=None, max_examples=60)
def test_the_cycles_share_the_steps_between_them(schedule):
    k, lengths = schedule.num_cycles, [schedule.cycle_length(c) for c in range(schedule.num_cycles)]
    assert sum(lengths) == schedule.total_steps
    assert max(lengths) - min(lengths) <= 1 + (schedule.total_steps % k > 0)
    assert min(lengths) >= 1
    owners = [schedule.cycle(t) for t in steps(schedule)]
    assert owners == [c for c in range(k) for _ in range(lengths[c])]
    ends = [t for t in steps(schedule) if schedule.is_cycle_end(t)]
    assert tuple(ends) == schedule.edges[1:]
    assert not schedule.is_cycle_end(0)


@given(schedules(levels="rising", reset_ratio=1.0, recompute="climb"))
@settings(deadline=None, max_examples=40)
def test_rising_levels_without_dips_are_gradual_pruning_over_the_whole_run(schedule):
    gradual = Schedule(
        schedule.sparsity,
        schedule.total_steps,
        ramp=schedule.ramp,
        ramp_ratio=schedule.rise_ratio,
        initial_sparsity=schedule.initial_sparsity,
    )
    for t in steps(schedule):
        assert schedule.sparsity_at(t) == pytest.approx(gradual.sparsity_at(t), abs=1e-12)


@given(schedules(levels="rising", recompute="climb"))
@settings(deadline=None, max_examples=40)
def test_dips_below_rising_levels_stay_between_the_reset_ratio_and_the_level(schedule):
    without_dips = Schedule(**{**vars_of(schedule), "reset_ratio": 1.0})
    for t in steps(schedule):
        level = without_dips.sparsity_at(t)
        assert schedule.reset_ratio * level - 1e-12 <= schedule.sparsity_at(t) <= level + 1e-12


def vars_of(schedule):
    return {name: getattr(schedule, name) for name in Schedule.__dataclass_fields__}


def test_the_papers_cycle_by_hand():
    # T = 20, k = 2: L' = round(0.8 * 10) = 8; s = s_t + (s_init - s_t) (1 - u / 8)^3
    schedule = Schedule(sparsity=0.8, total_steps=20, num_cycles=2, reset_ratio=0.5)
    by_hand = {1: 0.0, 5: 0.8 - 0.8 / 8, 9: 0.8, 10: 0.8, 11: 0.4, 15: 0.8 - 0.4 / 8, 19: 0.8}
    assert {t: schedule.sparsity_at(t) for t in by_hand} == pytest.approx(by_hand)
    assert [t for t in range(1, 21) if schedule.is_pruning_step(t)] == [
        *range(1, 10),
        *range(11, 20),
    ]


def test_one_cycle_is_gradual_pruning_with_the_known_value_half_way():
    schedule = Schedule(sparsity=0.5, total_steps=25, ramp_ratio=0.8)  # a climb of 20 steps
    assert schedule.sparsity_at(11) == 0.4375
    assert schedule.sparsity_at(21) == 0.5


def test_rising_levels_by_hand():
    # T = 20, k = 2: the level climbs for 16 steps; the dip of cycle 2 takes round(0.4 * 10) = 4
    options = {"ramp": "linear", "levels": "rising", "ramp_ratio": 0.4, "reset_ratio": 0.5}
    schedule = Schedule(sparsity=0.8, total_steps=20, num_cycles=2, **options)
    by_hand = {1: 0.0, 9: 0.4, 10: 0.45, 11: 0.5 * 0.5, 13: 0.75 * 0.6, 15: 0.7, 17: 0.8, 20: 0.8}
    assert {t: schedule.sparsity_at(t) for t in by_hand} == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("target", "lowest"), [(0.0, 0.0), (0.5, 0.475), (0.9, 0.855), (0.95, 0.9275), (0.99, 0.9855)]
)
def test_the_default_dips_let_back_as_large_a_share_of_the_kept_above_90_percent_as_there(
    target, lowest
):
    # Kept at 0.9: 10 % of all, in its dip 14.5 %. At 0.95: 5 %, in the dip 1.45 times 5 % = 7.25 %.
    schedule = PruningConfig("rising", sparsity=target).build_schedule(100)
    assert schedule.reset_ratio is None
    assert schedule.sparsity_at(100) == target
    level_at_edge = Schedule(target, 100, 2, 1.0, levels="rising").sparsity_at(51)
    assert schedule.sparsity_at(51) == pytest.approx(
        lowest * level_at_edge / target if target else 0
    )
    given = PruningConfig("rising", sparsity=target, reset_ratio=0.8).build_schedule(100)
    assert given.sparsity_at(51) == pytest.approx(0.8 * level_at_edge)


@pytest.mark.parametrize("name", RAMPS)
def test_every_ramp_is_monotone_inside_the_unit_interval_and_ends_at_exactly_one(name):
    values = [RAMPS[name](i / 1000) for i in range(1001)]
    assert values == sorted(values)
    assert values[0] >= 0.0
    assert values[-1] == 1.0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: 1.5 * x, r"'mine' at 1\.0 must be in \[0, 1\]; got 1\.5"),
        (lambda x: math.nan, r"'mine' at 0\.0 must be in \[0, 1\]; got nan"),
        (lambda x: 0.9 * x, r"'mine' must be 1 at 1\.0.*got 0\.9"),
    ],
)
def test_a_ramp_that_ends_elsewhere_is_refused(function, message, monkeypatch):
    monkeypatch.setitem(RAMPS, "mine", function)
    with pytest.raises(ValueError, match=message):
        Schedule(0.8, 10, ramp="mine")


@pytest.mark.parametrize(
    ("name", "at_0", "at_quarter", "at_half"),
    [
        ("cubic", 0.0, 0.578125, 0.875),
        ("linear", 0.0, 0.25, 0.5),
        ("cosine", 0.0, 0.1464466094, 0.5),
        ("logistic", 0.0066936768, 0.1824480366, 0.8809057770),
        ("step", 0.0, 0.0, 0.0),
        ("constant", 1.0, 1.0, 1.0),
    ],
)
def test_the_ramps_have_their_known_values(name, at_0, at_quarter, at_half):
    values = [RAMPS[name](x) for x in (0.0, 0.25, 0.5)]
    assert values == pytest.approx([at_0, at_quarter, at_half])


def schedule_of(method, sparsity=0.8, total_steps=20, **options):
    config = PruningConfig(method=method, sparsity=sparsity, **options)
    return config.build_schedule(total_steps)


def due(schedule):
    return [t for t in steps(schedule) if schedule.is_pruning_step(t)]


def test_iterative_pruning_climbs_in_equal_stairs_at_the_edges():
    schedule = schedule_of("iterative")
    at = [schedule.sparsity_at(t) for t in (1, 5, 6, 10, 11, 15, 16, 20)]
    assert at == pytest.approx([0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.8, 0.8])
    assert due(schedule) == [1, 6, 11, 16]


def test_frozen_restarts_recompute_nothing_after_the_first_cycle():
    schedule = schedule_of("frozen_restarts")
    assert max(due(schedule)) == 5
    assert {schedule.sparsity_at(t) for t in range(5, 21)} == {0.8}


def test_ac_dc_alternates_between_dense_and_sparse_phases():
    schedule = schedule_of("ac_dc", num_cycles=2)
    assert [schedule.sparsity_at(t) for t in steps(schedule)] == ([0.0] * 5 + [0.8] * 5) * 2
    assert due(schedule) == [1, 6, 11, 16]


def test_sculpt_keeps_its_first_masks_until_the_cut_of_the_last_cycle():
    schedule = schedule_of("sculpt")
    at = [schedule.sparsity_at(t) for t in steps(schedule)]
    assert at == pytest.approx([0.5] * 15 + [0.8] * 5)
    assert due(schedule) == [1, 16]


def test_projected_gradient_descent_is_at_the_target_and_prunes_at_every_step():
    schedule = schedule_of("pgd")
    assert {schedule.sparsity_at(t) for t in steps(schedule)} == {0.8}
    assert due(schedule) == list(steps(schedule))


def test_masks_of_the_first_cycle_cannot_follow_a_reset():
    with pytest.raises(ValueError, match=r"reset_ratio must be 1 .*recompute='first_cycle'"):
        schedule_of("frozen_restarts", reset_ratio=0.5)


def test_the_first_climb_cannot_begin_above_the_target():
    with pytest.raises(ValueError, match=r"initial_sparsity must not exceed .* 0\.3; got 0\.5"):
        schedule_of("sculpt", sparsity=0.3)


def test_cubic_half_way_to_one_half_is_0_4375():
    assert 0.5 * cubic(0.5) == 0.4375


@pytest.mark.parametrize(
    ("total_steps", "num_cycles", "edges"),
    [(10, 4, (0, 2, 5, 8, 10)), (7, 2, (0, 4, 7)), (3, 3, (0, 1, 2, 3)), (1, 1, (0, 1))],
)
def test_edges_are_rounded_to_whole_steps(total_steps, num_cycles, edges):
    assert cycle_edges(total_steps, num_cycles) == edges


@pytest.mark.parametrize(
    ("total_steps", "num_cycles", "interval"),
    [
        (10, 2, 1),
        (50, 1, 1),
        (75, 1, 2),
        (400, 4, 2),
        (1000, 1, 20),
        (10_000, 2, 100),
        (10**6, 1, 100),
    ],
)
def test_the_default_interval_is_a_fortieth_of_the_climb_within_1_and_100(
    total_steps, num_cycles, interval
):
    assert Schedule(0.9, total_steps, num_cycles, ramp_ratio=0.8).interval == interval


@pytest.mark.parametrize("num_cycles", [1, 2, 4])
@pytest.mark.parametrize(
    ("total_steps", "interval"), [(100, 1), (750, 3), (1500, 6), (4000, 16), (10**6, 100)]
)
def test_one_climb_below_which_cycles_dip_has_200_intervals(total_steps, num_cycles, interval):
    assert Schedule(0.9, total_steps, num_cycles, levels="rising").interval == interval


def test_an_interval_longer_than_the_climb_leaves_the_edge_and_the_last_step():
    schedule = Schedule(sparsity=0.9, total_steps=20, num_cycles=2, interval_steps=1000)
    assert [t for t in range(1, 21) if schedule.is_pruning_step(t)] == [1, 9, 11, 19]


def test_cycles_of_one_step_are_at_the_target_at_once():
    schedule = Schedule(sparsity=0.9, total_steps=3, num_cycles=3)
    assert [schedule.sparsity_at(t) for t in (1, 2, 3)] == [0.9, 0.9, 0.9]
    assert all(schedule.is_pruning_step(t) for t in (1, 2, 3))


def test_more_cycles_than_steps_are_refused():
    with pytest.raises(
        ValueError, match=r"num_cycles must not exceed .*\(5\); got 6\. Train longer"
    ):
        Schedule(sparsity=0.9, total_steps=5, num_cycles=6)
