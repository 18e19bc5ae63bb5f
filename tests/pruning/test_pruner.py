import math
from contextlib import ExitStack

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_cyclprune import METHODS, PruningConfig
from hf_cyclprune.pruning.criterion import CRITERIA, Rows
from hf_cyclprune.pruning.patterns import NM, SCOPES, Unstructured
from hf_cyclprune.pruning.pruner import Pruner, PruningStep
from hf_cyclprune.pruning.ramps import RAMPS
from hf_cyclprune.pruning.schedules import LEVELS, Schedule

PATTERNS = [*map(Unstructured, SCOPES), NM(2, 4), NM(1, 4)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
STEPS = 24


def new_pruner(targets, pattern=PATTERNS[0], criterion="magnitude", **options):
    options = {"total_steps": STEPS, "num_cycles": 3, "interval_steps": 2, **options}
    sparsity = options.pop("sparsity", pattern.sparsity if isinstance(pattern, NM) else 0.8)
    optimizer = options.pop("optimizer", None)
    schedule = Schedule(sparsity, **options)
    return Pruner(targets, schedule, CRITERIA[criterion](), pattern, optimizer=optimizer)


def assert_zero_exactly_where_pruned(pruner):
    """Every pruned weight is +0.0 to the bit, every kept one is not zero."""
    for name, weight in pruner.targets.items():
        mask = pruner.masks[name]
        bits = weight.detach().contiguous().view(BITS[weight.element_size()])
        assert not bits[~mask].any()
        assert (weight[mask] != 0).all()


def num_zeros(pruner):
    """Zeros of each group, counted in the weights."""
    return [
        sum(int((pruner.targets[name] == 0).sum()) for name in group) for group in pruner.groups
    ]


class SlowTwin:
    """The masks of a run, by sorting: after each step, from the weights before they are masked."""

    def __init__(self, pruner, mask_of_lowest):
        self.pattern, self.schedule, self.shapes = pruner.pattern, pruner.schedule, pruner.shapes
        self.mask_of_lowest = mask_of_lowest
        self.masks = {name: mask.clone() for name, mask in pruner.masks.items()}
        self.waits = pruner.criterion.is_statistic  # in the first twentieth of the run
        self.is_due = False

    def step(self, t, scores):
        self.is_due |= self.schedule.is_pruning_step(t)
        if not self.is_due or (self.waits and t <= STEPS // 20):
            return
        self.is_due = False
        demand = self.pattern.num_pruned(self.shapes, self.schedule.sparsity_at(t))
        for group, count in zip(self.pattern.groups(self.shapes), demand, strict=True):
            before = sum(int((~self.masks[name]).sum()) for name in group)
            candidates = [self.candidates(name, scores[name], count < before) for name in group]
            lowest = self.mask_of_lowest(
                [scores[name][c] for name, c in zip(group, candidates, strict=True)], count
            )
            for name, candidate, kept in zip(group, candidates, lowest, strict=True):
                self.masks[name] = torch.ones_like(candidate)
                self.masks[name][candidate] = kept

    def candidates(self, name, scores, is_reset):
        """Which weights may be pruned: at a reset those that were, with n:m never the top n."""
        found = ~self.masks[name] if is_reset else torch.ones_like(self.masks[name])
        if isinstance(self.pattern, NM) and not is_reset:
            n, m = self.pattern.n, self.pattern.m
            groups = scores.view(-1, m)
            top = torch.stack([self.mask_of_lowest([group], m - n)[0] for group in groups])
            found &= ~top.view(scores.shape)
        return found


@pytest.mark.parametrize("is_accelerator", [False, True])
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_masks_of_every_step_are_those_of_the_slow_twin(
    new_toy, mask_of_lowest, pretend_accelerator, pattern, criterion, is_accelerator
):
    toy = new_toy()
    pruner = new_pruner(toy.targets, pattern, criterion, optimizer=toy.optimizer)
    with pretend_accelerator() if is_accelerator else ExitStack():
        assert_equals_slow_twin(toy, pruner, mask_of_lowest)


@pytest.mark.parametrize("reset_ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("ramp", RAMPS)
def test_the_masks_of_every_ramp_and_all_levels_are_those_of_the_slow_twin(
    new_toy, mask_of_lowest, ramp, levels, reset_ratio
):
    toy = new_toy()
    options = {"ramp": ramp, "levels": levels, "reset_ratio": reset_ratio}
    pruner = new_pruner(toy.targets, Unstructured("global"), **options)
    assert_equals_slow_twin(toy, pruner, mask_of_lowest)
    assert pruner.is_at_target


def assert_equals_slow_twin(toy, pruner, mask_of_lowest):
    twin = SlowTwin(pruner, mask_of_lowest)
    scorer = type(pruner.criterion)()
    scorer.attach(toy.targets)
    for t in range(1, STEPS + 1):
        before = toy.copies()
        toy.train_step(before_update=lambda t=t: pruner.before_update(t))
        scorer.begin_cycle(pruner.schedule.cycle(t))
        scores = {}
        for name, w in toy.targets.items():
            for sees in (scorer, pruner.observation):
                sees.observe_input(name, before[name])
            scorer.observe(name, before[name], w.grad)
            moments = pruner.observation.moments
            moment = moments.of(name, slice(None)) if "second_moment" in scorer.reads else None
            rows = Rows(name, w.detach(), twin.masks[name], w.grad, moment)
            scores[name] = scorer.score(rows)
        before = toy.copies()
        pruner.step(t)
        twin.step(t, scores)
        for name, mask in pruner.masks.items():
            assert torch.equal(mask, twin.masks[name]), (t, name)
            assert torch.equal(toy.targets[name][mask], before[name][mask])
        assert_zero_exactly_where_pruned(pruner)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_after_every_step_exactly_the_demanded_weights_are_zero(new_toy, pattern, optimizer):
    toy = new_toy(optimizer=optimizer)
    pruner = new_pruner(toy.targets, pattern, interval_steps=1, ramp_ratio=1.0)
    for t, _, done in toy.run(pruner, STEPS):
        assert done.num_recomputed == len(pruner.groups)
        assert num_zeros(pruner) == pruner.demand(pruner.schedule.sparsity_at(t))
        assert num_zeros(pruner) == pruner.num_pruned
        assert_zero_exactly_where_pruned(pruner)
    assert pruner.is_at_target
    assert pruner.sparsity == sum(num_zeros(pruner)) / pruner.num_weights


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_between_pruning_steps_the_optimizer_moves_pruned_weights_and_they_are_zeroed_again(
    new_toy, pattern
):
    toy = new_toy()
    pruner = new_pruner(toy.targets, pattern, interval_steps=100)
    for t, before, done in toy.run(pruner, STEPS):
        if not pruner.schedule.is_pruning_step(t):
            assert done == PruningStep()
            moved = [(before[name][~mask] != 0).all() for name, mask in pruner.masks.items()]
            assert all(moved)
        assert_zero_exactly_where_pruned(pruner)


def test_a_whole_cycle_by_hand():
    weight = torch.tensor([[1.0, -8.0, 2.0, -7.0, 3.0, -6.0, 4.0, -5.0]])
    # four steps, two cycles of two: s = 0, 0.5, 0.25, 0.5 of eight weights
    pruner = new_pruner({"w": weight}, sparsity=0.5, total_steps=4, num_cycles=2)
    assert pruner.step(1) == PruningStep(num_recomputed=1, is_reset=False)
    assert weight.tolist() == [[1, -8, 2, -7, 3, -6, 4, -5]]
    assert pruner.step(2) == PruningStep(num_recomputed=1, is_reset=False)
    assert weight.tolist() == [[0, -8, 0, -7, 0, -6, 0, -5]]
    weight += torch.tensor([[0.1, 0.0, -0.3, 6.9, 0.2, 0.0, -0.1, 0.0]])
    assert pruner.step(3) == PruningStep(num_recomputed=1, is_reset=True)
    # -0.3 and 0.2 return, the survivor -0.1 stays although it is smaller
    assert weight.tolist() == [pytest.approx([0, -8, -0.3, -0.1, 0.2, -6, 0, -5])]
    assert pruner.step(4) == PruningStep(num_recomputed=1, is_reset=False)
    assert weight.tolist() == [pytest.approx([0, -8, -0.3, 0, 0, -6, 0, -5])]
    assert pruner.is_at_target


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_at_a_reset_survivors_stay_and_the_largest_of_the_pruned_return(new_toy, pattern):
    toy = new_toy()
    pruner = new_pruner(toy.targets, pattern, total_steps=16, num_cycles=2)
    for _, _, done in toy.run(pruner, 8):
        assert not done.is_reset
    old = {name: mask.clone() for name, mask in pruner.masks.items()}
    num_before = list(pruner.num_pruned)
    toy.train_step()
    moved = toy.copies()
    assert pruner.step(9) == PruningStep(len(pruner.groups), is_reset=True)
    demand = pruner.demand(0.5 * pruner.schedule.sparsity)
    for group, before, after in zip(pruner.groups, num_before, demand, strict=True):
        returned, left_out = [], []
        for name in group:
            assert pruner.masks[name][old[name]].all()
            values = moved[name].abs()
            returned += values[~old[name] & pruner.masks[name]].tolist()
            left_out += values[~old[name] & ~pruner.masks[name]].tolist()
        assert len(returned) == before - after > 0
        assert min(returned) >= max(left_out)
        assert min(returned) > 0


def bits_of(pruner):
    return {name: mask.tolist() for name, mask in pruner.masks.items()}


@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "random"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_reset_waits_while_the_learning_rate_is_zero(new_toy, pattern, criterion):
    toy = new_toy()
    pruner = new_pruner(
        toy.targets, pattern, criterion, total_steps=40, num_cycles=2, interval_steps=7
    )
    for t in range(1, 21):
        toy.train_step()
        pruner.step(t)
    at_end = bits_of(pruner)
    for t in (21, 22):  # the edge, and a step that is no pruning step
        toy.train_step(lr=0.0)
        assert pruner.step(t) == PruningStep()
        assert pruner.pending == set(range(len(pruner.groups)))
        assert bits_of(pruner) == at_end
        assert not pruner.is_at_target
        assert_zero_exactly_where_pruned(pruner)
    toy.train_step()
    assert not pruner.schedule.is_pruning_step(23)
    assert pruner.step(23) == PruningStep(len(pruner.groups), is_reset=True)
    assert pruner.pending == set()
    assert num_zeros(pruner) == pruner.demand(pruner.schedule.sparsity_at(23))
    assert_zero_exactly_where_pruned(pruner)


def test_a_step_of_which_only_one_weight_took_part_resets_only_its_group(new_toy):
    toy = new_toy()
    pruner = new_pruner(toy.targets, total_steps=20, num_cycles=2)
    for t in range(1, 11):
        toy.train_step()
        pruner.step(t)
    with torch.no_grad():
        toy.targets["b"] += 0.01
    assert pruner.step(11) == PruningStep(num_recomputed=1, is_reset=True)
    assert pruner.pending == {0, 2}
    at_edge, at_end = pruner.demand(0.4), pruner.demand(0.8)
    assert num_zeros(pruner) == [at_end[0], at_edge[1], at_end[2]]
    toy.train_step()
    done = pruner.step(12)
    assert done.is_reset
    assert pruner.pending == set()


def test_a_group_of_many_weights_is_reset_as_soon_as_one_of_them_has_moved(new_toy):
    toy = new_toy()
    pruner = new_pruner(toy.targets, Unstructured("global"), total_steps=20, num_cycles=2)
    for t in range(1, 11):
        toy.train_step()
        pruner.step(t)
    with torch.no_grad():
        toy.targets["b"] += 0.01
    num_before = int((~pruner.masks["b"]).sum())
    assert pruner.step(11) == PruningStep(num_recomputed=1, is_reset=True)
    num_freed = pruner.demand(0.8)[0] - pruner.demand(0.4)[0]
    assert int(pruner.masks["b"].sum()) >= min(num_before, num_freed)


def test_weights_that_never_move_keep_their_masks_and_are_at_the_target_in_the_end(new_toy):
    toy = new_toy()
    pruner = new_pruner(toy.targets, total_steps=20, num_cycles=2)
    for t in range(1, 11):
        toy.train_step()
        pruner.step(t)
    at_end = bits_of(pruner)
    for t in range(11, 21):
        assert not pruner.step(t).is_reset
        assert bits_of(pruner) == at_end
    assert pruner.is_at_target


@pytest.mark.parametrize("criterion", [n for n in CRITERIA if "gradient" in CRITERIA[n].reads])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_criterion_of_gradients_waits_for_finite_ones(new_toy, pattern, criterion, value):
    toy = new_toy()
    pruner = new_pruner(toy.targets, pattern, criterion, interval_steps=100, total_steps=30)
    toy.train_step()
    pruner.step(1)
    toy.train_step()
    toy.targets["b"].grad[0, 0] = value
    due = 9  # the last step of the first climb
    done = pruner.step(due)
    waiting = {g for g, group in enumerate(pruner.groups) if "b" in group}
    assert pruner.pending == waiting
    assert done == PruningStep(len(pruner.groups) - len(waiting))
    assert not pruner.is_at_target
    toy.train_step()
    assert pruner.step(due + 1) == PruningStep(len(waiting))
    assert pruner.is_at_target


def test_a_criterion_of_gradients_names_the_weight_that_has_none(new_toy):
    toy = new_toy()
    pruner = new_pruner(toy.targets, criterion="taylor")
    toy.train_step()
    toy.targets["b"].grad = None
    with pytest.raises(ValueError, match=r"gradient.*'b'.*criterion='magnitude'"):
        pruner.step(3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf, -1.0, -0.0])
def test_whatever_a_pruned_weight_holds_it_becomes_plus_zero(new_toy, dtype, value):
    toy = new_toy(dtype)
    pruner = new_pruner(toy.targets)
    pruner.prune_to(0.5)
    with torch.no_grad():
        for name, weight in toy.targets.items():
            weight[~pruner.masks[name]] = value
    pruner.apply_masks_()
    assert_zero_exactly_where_pruned(pruner)


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_every_dtype_and_layout_is_pruned_as_a_contiguous_fp32_copy(
    new_toy, pattern, dtype, is_transposed
):
    toy = new_toy(dtype, is_transposed=is_transposed)
    pruner = new_pruner(toy.targets, pattern)
    assert all(weight.is_contiguous() != is_transposed for weight in toy.targets.values())
    for t in range(1, STEPS + 1):
        toy.train_step()
        old = {name: mask.clone() for name, mask in pruner.masks.items()}
        twin_targets = {name: w.float().contiguous() for name, w in toy.copies().items()}
        twin = Pruner(twin_targets, pruner.schedule, CRITERIA["magnitude"](), pattern)
        twin.masks.update(old)
        twin.num_pruned = list(pruner.num_pruned)
        assert pruner.step(t) == twin.step(t)
        assert bits_of(pruner) == bits_of(twin)
        assert_zero_exactly_where_pruned(pruner)
    assert pruner.is_at_target


@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_step_that_is_taken_twice_changes_nothing_more(new_toy, pattern, criterion):
    toy = new_toy()
    pruner = new_pruner(toy.targets, pattern, criterion)
    for t, _, _ in toy.run(pruner, STEPS):
        masks, weights = bits_of(pruner), toy.copies()
        assert not pruner.step(t).is_reset
        assert bits_of(pruner) == masks
        assert all(torch.equal(toy.targets[name], weights[name]) for name in weights)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_two_identical_runs_have_identical_weights_and_masks(new_toy, pattern, criterion):
    ends = []
    for _ in range(2):
        toy = new_toy()
        pruner = new_pruner(toy.targets, pattern, criterion)
        for _ in toy.run(pruner, STEPS):
            pass
        ends.append((bits_of(pruner), {n: w.tolist() for n, w in toy.copies().items()}))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("scope", SCOPES)
def test_at_sparsity_zero_the_pruner_is_not_there(new_toy, scope):
    pruned, plain = new_toy(), new_toy()
    for toy in (pruned, plain):
        with torch.no_grad():
            toy.targets["a"][0, :3] = torch.tensor([math.nan, -0.0, math.inf])
    pruner = new_pruner(pruned.targets, Unstructured(scope), sparsity=0.0)
    identities = {name: (id(w), w.data_ptr()) for name, w in pruned.targets.items()}
    for _ in pruned.run(pruner, STEPS):
        plain.train_step()
    for name, weight in pruned.targets.items():
        assert torch.equal(weight.view(torch.int32), plain.targets[name].view(torch.int32))
        assert (id(weight), weight.data_ptr()) == identities[name]
        assert weight.requires_grad


@pytest.mark.parametrize("scope", SCOPES)
def test_a_plateau_of_zeros_is_pruned_first_and_sparsity_can_fall_again(scope):
    weight = torch.zeros(10, 10)
    weight[:2] = torch.arange(1.0, 21.0).view(2, 10)
    pruner = new_pruner({"w": weight}, Unstructured(scope))
    for sparsity in (0.8, 0.6, 0.4, 0.8):
        pruner.prune_to(sparsity)
        assert (~pruner.masks["w"]).sum() == 100 * sparsity
        assert pruner.masks["w"][:2].all()


def test_small_layers_may_be_pruned_altogether_and_come_back():
    targets = {"tiny": torch.ones(1, 2), "large": torch.arange(1.0, 41.0).view(4, 10)}
    pruner = new_pruner(targets, sparsity=0.9, total_steps=4, num_cycles=2)
    pruner.prune_to(0.9)
    assert pruner.num_pruned == [2, 36]
    assert not pruner.masks["tiny"].any()
    for weight in targets.values():
        weight += 1.0
    assert pruner.step(3).is_reset
    assert pruner.num_pruned == [1, 18]
    assert targets["tiny"].tolist() == [[1.0, 0.0]]


def test_a_number_that_erk_rounds_down_during_a_climb_is_no_reset():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(4, 40, (12, 2), generator=generator).tolist()
    shapes = {str(i): tuple(size) for i, size in enumerate(sizes)}
    targets = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    pruner = new_pruner(
        targets, Unstructured("erk"), sparsity=0.9, total_steps=250, num_cycles=1, interval_steps=1
    )
    num_rounded_down = 0
    for t in range(1, 251):
        for weight in targets.values():
            weight += 0.01 * torch.randn(weight.shape, generator=generator)
        before = list(pruner.num_pruned)
        assert not pruner.step(t).is_reset
        num_rounded_down += any(a < b for a, b in zip(pruner.num_pruned, before, strict=True))
    assert num_rounded_down > 0
    assert pruner.is_at_target


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_nan_scores_never_crash_and_leave_the_counts_exact(new_toy, pattern):
    toy = new_toy()
    pruner = new_pruner(toy.targets, pattern)
    with torch.no_grad():
        toy.targets["a"].fill_(math.nan)
    for t in range(1, STEPS + 1):
        pruner.step(t)
        with torch.no_grad():
            toy.targets["b"][~pruner.masks["b"]] = math.nan
        if t == STEPS:
            pruner.apply_masks_()
    assert num_zeros(pruner) == pruner.num_pruned == pruner.demand(pruner.schedule.sparsity)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nm_is_exact_in_a_layer_of_nans(dtype):
    weight = torch.full((4, 32), math.nan, dtype=dtype)
    pruner = new_pruner({"w": weight}, NM(2, 4))
    pruner.prune_to(0.5)
    assert (pruner.masks["w"].view(-1, 4).sum(1) == 2).all()


def test_nm_names_the_weight_that_it_does_not_fit():
    with pytest.raises(ValueError, match=r"divisible by 4; got 6 in 'b'"):
        new_pruner({"a": torch.ones(2, 8), "b": torch.ones(2, 6)}, NM(2, 4))


class Doubles(TorchDispatchMode):
    """Notes the operations that compute in fp64, which Apple's GPUs do not have."""

    def __init__(self):
        super().__init__()
        self.operations = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if any(
            isinstance(r, torch.Tensor) and r.dtype == torch.float64 for r in tree_leaves(result)
        ):
            self.operations.add(str(func))
        return result


# Two methods need a whole model, and one its zeros.
@pytest.mark.parametrize("method", sorted({*METHODS} - {"wanda", "lookahead", "hold"}))
def test_no_method_computes_in_double_on_the_device(method):
    weights = {f"{i}": torch.nn.Parameter(torch.randn(16, 16)) for i in range(3)}
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-2)
    config = PruningConfig(method=method, sparsity=0.5, interval_steps=2)
    pruner = config.build_pruner(weights, 40, optimizer)
    with Doubles() as doubles:
        for t in range(1, 41):
            pruner.begin_step(t)
            for weight in weights.values():
                weight.grad = torch.randn_like(weight)
            pruner.before_update(t)
            optimizer.step()
            pruner.step(t)
    assert pruner.is_at_target
    assert not doubles.operations
