import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_cyclprune.pruning.criterion import CRITERIA
from hf_cyclprune.pruning.masks import compare_masks, pack_mask
from hf_cyclprune.pruning.patterns import Unstructured
from hf_cyclprune.pruning.pruner import Pruner
from hf_cyclprune.pruning.schedules import Schedule
from hf_cyclprune.reporting.cycles import CycleHistory, CycleReport


def masks(*rows):
    """{"a": .., "b": ..}: the first row of bits, and the second."""
    return {
        name: torch.tensor([int(bit) for bit in row]).bool().view(2, -1)
        for name, row in zip("ab", rows, strict=True)
    }


def packed(named):
    return {name: pack_mask(mask) for name, mask in named.items()}


@pytest.mark.parametrize(
    ("before", "after", "recovered", "change"),
    [
        (("1100", "10"), ("1100", "10"), 0.0, 0.0),
        (("1100", "10"), ("1110", "10"), 1 / 6, 1 / 4),  # 3 of 4 in either
        (("1100", "10"), ("0011", "01"), 3 / 6, 1.0),
        (("1100", "10"), ("1001", "10"), 1 / 6, 2 / 4),
        (("1111", "11"), ("1000", "00"), 0.0, 5 / 6),
        (("0000", "00"), ("0000", "00"), 0.0, 0.0),
        (("0000", "00"), ("1111", "11"), 1.0, 1.0),
        (("1111", "11"), ("0000", "00"), 0.0, 1.0),
    ],
)
def test_shares_by_hand(before, after, recovered, change):
    found = compare_masks(packed(masks(*before)), masks(*after))
    assert found == pytest.approx((recovered, change))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000))
@settings(deadline=None, max_examples=50)
def test_shares_are_those_of_sets(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    before, after = (
        {n: torch.rand(rows, columns, generator=generator) < 0.4 for n in "ab"} for _ in range(2)
    )
    old, new = (
        {(n, i) for n in "ab" for i, bit in enumerate(m[n].flatten().tolist()) if bit}
        for m in (before, after)
    )
    recovered, change = compare_masks(packed(before), after)
    assert recovered == pytest.approx(len(new - old) / (2 * rows * columns))
    assert change == pytest.approx(1 - len(old & new) / len(old | new) if old | new else 0.0)


FIRST, AT_EDGE, SECOND = masks("1100", "10"), masks("1110", "11"), masks("0110", "10")


def test_a_history_of_two_cycles_by_hand():
    history = CycleHistory()
    history.observe_reset(1, FIRST)  # nothing to compare with
    history.observe_end(10, 0, 0.5, FIRST)
    history.observe_reset(11, AT_EDGE)
    history.observe_end(20, 1, 0.5, SECOND)
    history.observe_end(30, 2, 0.5, SECOND)
    assert history.cycles == [
        CycleReport(cycle=1, end_step=10, sparsity=0.5),
        CycleReport(
            cycle=2,
            end_step=20,
            sparsity=0.5,
            reset_step=11,
            recovered_share_at_edge=2 / 6,
            recovered_share_at_end=1 / 6,
            mask_change=1 - 2 / 4,
        ),
        CycleReport(
            cycle=3, end_step=30, sparsity=0.5, recovered_share_at_end=0.0, mask_change=0.0
        ),
    ]


def test_the_reference_does_not_follow_masks_that_change_in_place():
    history, moving = CycleHistory(), {n: m.clone() for n, m in FIRST.items()}
    history.observe_end(10, 0, 0.5, moving)
    for name, mask in moving.items():
        mask.copy_(SECOND[name])
    history.observe_end(20, 1, 0.5, moving)
    assert history.cycles[1].recovered_share_at_end == pytest.approx(1 / 6)


EVALUATION = {
    "eval_a_f1": 0.5,
    "eval_a_loss": 1,
    "eval_a_runtime": 9.0,
    "eval_a_samples_per_second": 9.0,
    "eval_a_steps_per_second": 9.0,
    "eval_model_preparation_time": 9.0,
    "eval_inf": float("inf"),
    "eval_nan": float("nan"),
    "eval_name": "words",
    "epoch": 2.0,
}


def test_only_an_evaluation_at_a_cycles_end_counts_and_only_what_it_measured():
    history = CycleHistory()
    history.observe_evaluation(10, EVALUATION)
    history.observe_end(10, 0, 0.5, FIRST)
    history.observe_evaluation(9, EVALUATION)
    history.observe_evaluation(11, EVALUATION)
    assert history.cycles[0].metrics == {}
    history.observe_evaluation(10, EVALUATION)
    history.observe_evaluation(10, {"eval_b_f1": 0.75})
    history.observe_end(20, 1, 0.5, SECOND)
    assert history.cycles[0].metrics == {"eval_a_f1": 0.5, "eval_a_loss": 1.0, "eval_b_f1": 0.75}
    assert history.cycles[1].metrics == {}


def test_the_shares_of_a_step_are_those_of_the_cycle_that_ended_with_it():
    history = CycleHistory()
    assert history.shares_at(10) == {}
    history.observe_end(10, 0, 0.5, FIRST)
    assert history.shares_at(10) == {}  # nothing to compare with
    history.observe_end(20, 1, 0.5, SECOND)  # without a reset
    assert history.shares_at(20) == {"recovered_share_at_end": 1 / 6, "mask_change": 0.5}
    assert history.shares_at(19) == history.shares_at(21) == {}


@pytest.mark.parametrize("num_events", range(6))
def test_a_history_goes_on_after_json_as_if_it_had_not_been_interrupted(num_events):
    events = [
        lambda history: history.observe_end(10, 0, 0.5, FIRST),
        lambda history: history.observe_reset(12, AT_EDGE),
        lambda history: history.observe_end(20, 1, 0.5, SECOND),
        lambda history: history.observe_evaluation(20, EVALUATION),
        lambda history: history.observe_end(30, 2, 0.5, FIRST),
    ]
    whole, history = CycleHistory(), CycleHistory()
    for i, event in enumerate(events):
        if i == num_events:
            values = json.loads(json.dumps(history.to_dict(), allow_nan=False))
            history = CycleHistory.from_dict(values, history.reference)
        event(whole)
        event(history)
    assert history.cycles == whole.cycles
    assert history.to_dict() == whole.to_dict()


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize(("sparsity", "reset_ratio"), [(0.8, 0.5), (0.9, 0.5), (0.8, 0.75)])
def test_right_after_an_edge_the_recovered_share_is_what_the_reset_frees(
    scope, sparsity, reset_ratio
):
    generator = torch.Generator().manual_seed(0)
    targets = {name: torch.randn(20, 20, generator=generator) for name in "ab"}
    schedule = Schedule(sparsity, total_steps=20, num_cycles=2, reset_ratio=reset_ratio)
    pruner, history = (
        Pruner(targets, schedule, CRITERIA["magnitude"](), Unstructured(scope)),
        CycleHistory(),
    )
    for t in range(1, 21):
        for weight in targets.values():
            weight += 0.1 * torch.randn(20, 20, generator=generator)
        if pruner.step(t).is_reset:
            history.observe_reset(t, pruner.masks)
        if schedule.is_cycle_end(t):
            history.observe_end(t, schedule.cycle(t), pruner.sparsity, pruner.masks)
    first, second = history.cycles
    assert first == CycleReport(cycle=1, end_step=10, sparsity=sparsity)
    assert second.reset_step == 11
    assert second.recovered_share_at_edge == pytest.approx((1 - reset_ratio) * sparsity)
    assert 0 < second.recovered_share_at_end < second.recovered_share_at_edge
    assert 0 < second.mask_change < 1
