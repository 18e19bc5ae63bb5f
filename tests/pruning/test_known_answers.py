"""Each mechanism on numbers so small that the answer was worked out by hand."""

import pytest
import torch

from hf_cyclprune.pruning.criterion import CRITERIA, Rows
from hf_cyclprune.pruning.patterns import NM, Unstructured
from hf_cyclprune.pruning.pruned_weights import PRUNED_WEIGHTS
from hf_cyclprune.pruning.pruner import Pruner
from hf_cyclprune.pruning.recovery import REGROWTH_AT, Recovery, Regrowth
from hf_cyclprune.pruning.schedules import Schedule

LAYER = Unstructured("layer")


def new_pruner(weight, sparsity, *, criterion="magnitude", pattern=LAYER, **options):
    """One target "w", pruned at every step; keyword arguments go to Schedule or Recovery."""
    names = ("decay", "flow_ratio", "regrowth", "returns_at")
    recovery = {name: options.pop(name) for name in names if name in options}
    recovery["policy"] = PRUNED_WEIGHTS[options.pop("pruned_weights", "zero")]
    optimizer = options.pop("optimizer", None)
    schedule = {"ramp_ratio": 0.0, "recompute": "always", "interval_steps": 1, "total_steps": 8}
    return Pruner(
        {"w": weight},
        Schedule(sparsity, **{**schedule, **options}),
        CRITERIA[criterion](),
        pattern,
        Recovery(**recovery),
        optimizer,
    )


def parameter(values):
    return torch.nn.Parameter(torch.tensor(values, dtype=torch.float32))


def take_step(pruner, t, gradient, lr=0.0):
    """Plain gradient descent on the one target."""
    weight = pruner.targets["w"]
    pruner.begin_step(t)
    weight.grad = torch.tensor(gradient, dtype=torch.float32)
    pruner.before_update(t)
    with torch.no_grad():
        weight -= lr * weight.grad
    return pruner.step(t)


def test_rigl_drops_the_smallest_and_grows_the_largest_gradients():
    weight = parameter([[8, 7, 6, 5], [4, 3, 2, 1], [0.5] * 4, [0.5] * 4])
    regrowth = Regrowth(CRITERIA["gradient"](), ratio=0.5, until=1.0)
    pruner = new_pruner(weight, 0.5, regrowth=regrowth)
    gradient = [[0, 0, 0, 0], [9, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8]]
    take_step(pruner, 1, gradient)
    # Kept: 8..1. Of these 8 half are dropped, 4, 3, 2, 1. Of the 12 that are pruned then the four
    # largest gradients are 9 (4.0, just dropped, which comes back), 8, 7 and 6.
    kept = [[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 1]]
    assert pruner.masks["w"].int().tolist() == kept
    assert int(pruner.num_returned) == 0  # none of them was pruned before this first step
    take_step(pruner, 2, [[0] * 4, [0, 1, 2, 3], [0] * 4, [0] * 4])
    # Kept: 8 at t = 2, share 0.5 (1 + cos(pi / 8)) / 2 = 0.48, so 3 are dropped: three of the 0.5s,
    # and those with gradients 1, 2, 3 return.
    assert pruner.masks["w"].int().tolist() == [[1] * 4, [1] * 4, [0] * 4, [0] * 4]
    assert int(pruner.num_returned) == 3


def test_granet_exchanges_a_share_of_the_kept_that_falls_like_a_cosine():
    regrowth = Regrowth(CRITERIA["gradient"](), ratio=0.5, until=1.0)
    schedule = Schedule(0.75, 8, interval_steps=1, ramp_ratio=1.0)
    num_kept = [64 - round(64 * schedule.sparsity_at(t)) for t in range(1, 9)]
    assert num_kept == [64, 46, 33, 25, 20, 17, 16, 16]
    exchanged = [int(regrowth.share(t, schedule) * n) for t, n in enumerate(num_kept, 1)]
    assert exchanged == [32, 22, 14, 8, 5, 2, 1, 0]


def test_sets_random_growth_is_drawn_anew_in_every_step():
    weight = parameter(torch.arange(1.0, 65.0).view(8, 8).tolist())
    regrowth = Regrowth(CRITERIA["random"](seed=1), ratio=0.5, until=1.0)
    pruner = new_pruner(weight, 0.5, regrowth=regrowth)
    take_step(pruner, 1, [[0.0] * 8] * 8)
    first = pruner.masks["w"].clone()
    take_step(pruner, 2, [[0.0] * 8] * 8)
    assert not torch.equal(first, pruner.masks["w"])
    assert int(pruner.masks["w"].sum()) == 32


def test_sr_ste_adds_lambda_times_the_pruned_values_to_their_gradient():
    weight = parameter([[4.0, -1.0, 2.0, -3.0]])
    pruner = new_pruner(
        weight, 0.5, pattern=NM(2, 4), pruned_weights="latent", decay=0.1, num_cycles=1
    )
    take_step(pruner, 1, [[0.0] * 4])
    assert weight.tolist() == [[4.0, 0.0, 0.0, -3.0]]
    take_step(pruner, 2, [[1.0, 1.0, 1.0, 1.0]])
    assert weight.grad.tolist() == [pytest.approx([1.0, 1.0 - 0.1, 1.0 + 0.2, 1.0])]
    assert pruner.policy.values["w"].tolist() == [[0.0, -1.0, 2.0, 0.0]]


def test_a_latent_weight_learns_while_it_is_pruned_and_returns_with_what_it_learned():
    weight = parameter([[4.0, 1.0]])
    pruner = new_pruner(weight, 0.5, pruned_weights="latent")
    take_step(pruner, 1, [[0.0, 0.0]])
    assert weight.tolist() == [[4.0, 0.0]]
    take_step(pruner, 2, [[1.0, -2.0]], lr=1.0)  # 4 - 1 and 1 + 2: the two change places at 3.5
    take_step(pruner, 3, [[0.0, -0.5]], lr=1.0)
    assert weight.tolist() == [[0.0, 3.5]]
    assert pruner.policy.values["w"].tolist() == [[3.0, 0.0]]


def test_a_latent_weight_waits_when_its_time_to_learn_is_over():
    weight = parameter([[4.0, 1.0]])
    pruner = new_pruner(weight, 0.5, pruned_weights="latent", flow_ratio=0.25)
    for t in (1, 2, 3, 4):  # 0.25 of 8 steps
        take_step(pruner, t, [[0.0, -1.0]], lr=1.0)
    assert sorted([*pruner.policy.values["w"][0].tolist(), *weight[0].tolist()]) == [0, 0, 3, 4]


def test_a_stored_weight_returns_with_the_value_it_had_when_it_was_pruned():
    weight = parameter([[4.0, 3.0, 2.0, 1.0]])
    pruner = new_pruner(weight, 0.5, pruned_weights="stored")
    take_step(pruner, 1, [[0.0] * 4])
    assert weight.tolist() == [[4.0, 3.0, 0.0, 0.0]]
    take_step(pruner, 2, [[0.0, 2.5, -9.0, -9.0]], lr=1.0)  # 3 falls to 0.5; the others moved
    assert weight.tolist() == [[4.0, 0.0, 2.0, 0.0]]
    assert pruner.policy.values["w"].tolist() == [[0.0, 0.5, 0.0, 1.0]]


@pytest.mark.parametrize("returns_at", REGROWTH_AT)
def test_when_a_stored_weight_may_return(returns_at):
    options = {"num_cycles": 2, "ramp_ratio": 0.5, "pruned_weights": "stored"}
    pruner = new_pruner(parameter([[4, 3, 2, 1]]), 0.5, returns_at=returns_at, **options)
    masks = []
    # After step 3 the second weight is 0.5, and after step 7 the third is 0.25.
    for t, (second, third) in enumerate([(0, 0)] * 2 + [(2.5, 0)] + [(0, 0)] * 3 + [(0, 1.75)], 1):
        take_step(pruner, t, [[0, second, third, 0]], lr=1.0)
        masks.append(pruner.masks["w"].int().tolist()[0])
    # Sparsity is 0, 0.44, 0.5, 0.5 and at the edge 0.25, 0.47, 0.5; of 4 weights 0, 2, 2, 2, 1, 2,
    # 2. At the edge what is kept stays, and the largest of the others returns.
    first = [1, 1, 0, 0] if returns_at == "edges" else [1, 0, 1, 0]
    edge = [1, 1, 1, 0] if returns_at == "edges" else [1, 0, 1, 1]
    last = [1, 0, 0, 1] if returns_at == "steps" else [1, 0, 1, 0]
    assert masks == [[1] * 4, [1, 1, 0, 0], first, first, edge, [1, 0, 1, 0], last]
    assert int(pruner.num_returned) == {"edges": 1, "until_last_edge": 2, "steps": 3}[returns_at]


def test_a_pretrained_value_is_the_one_from_before_training():
    weight = parameter([[4.0, 3.0, 2.0, 1.0]])
    pruner = new_pruner(weight, 0.5, pruned_weights="pretrained")
    take_step(pruner, 1, [[0.0, 2.5, 0.0, 0.0]], lr=1.0)  # 3 falls to 0.5 and is pruned
    assert weight.tolist() == [[4.0, 0.0, 2.0, 0.0]]
    take_step(pruner, 2, [[0.0] * 4])  # and is ranked by 3 again
    assert weight.tolist() == [[4.0, 3.0, 0.0, 0.0]]


def test_greg_shrinks_the_pruned_values_faster_and_faster_until_they_are_gone():
    weight = parameter([[4.0, 1.0]])
    pruner = new_pruner(weight, 0.5, pruned_weights="decay", decay=0.5, flow_ratio=0.5)
    values: list[float] = []
    seen: list[float] = []
    for t in range(1, 7):
        pruner.begin_step(t)
        seen.append(weight[0, 1].item())  # by the forward pass
        weight.grad = torch.zeros_like(weight)
        pruner.before_update(t)
        pruner.step(t)
        assert weight[0, 1] == 0  # by an evaluation
        values.append(pruner.policy.values["w"][0, 1].item())
    # Chosen at step 1; factors 1 - 0.5 x at x = 1/4, 2/4, 3/4, and 0 at x = 1.
    expected = [0.875, 0.875 * 0.75, 0.875 * 0.75 * 0.625, 0, 0, 0]
    assert values == pytest.approx(expected)
    assert seen == pytest.approx([1.0, *expected[:-1]])


def test_movement_scores_are_trained_by_adam_with_the_gradients_of_autograd():
    torch.manual_seed(0)
    weight, x = torch.randn(3, 4), torch.randn(5, 4)
    criterion = CRITERIA["movement"]()
    criterion.attach({"w": weight})
    scores = torch.nn.Parameter(weight.abs() / weight.abs().mean())
    optimizer = torch.optim.Adam([scores], lr=0.01)
    for step in range(20):
        mask = torch.rand(3, 4) > 0.5
        # Straight through: the forward pass has w times the mask, and dS is the gradient of that.
        gate = mask.float().requires_grad_()
        ((x @ (weight * gate).t() - step) ** 2).mean().backward()
        scores.grad = gate.grad
        optimizer.step()
        masked = (weight * mask).requires_grad_()
        ((x @ masked.t() - step) ** 2).mean().backward()
        criterion.observe("w", weight, masked.grad)
    now = criterion.score(Rows("w", weight, mask))
    assert torch.allclose(now, scores, rtol=1e-5)
    assert not torch.equal(now.argsort(), weight.abs().argsort()), "nothing was learned"


def test_snip_is_the_weight_times_the_gradient_of_all_batches_together():
    criterion = CRITERIA["snip"]()
    weight = torch.tensor([[1.0, -2.0]])
    criterion.observe("w", weight, torch.tensor([[3.0, 1.0]]))
    criterion.observe("w", weight, torch.tensor([[-1.0, 1.0]]))
    assert criterion.score(Rows("w", weight, weight != 0)).tolist() == [[2.0, 4.0]]


def test_platon_smooths_importance_and_uncertainty():
    criterion, weight = CRITERIA["platon"](), torch.tensor([[2.0]])
    importance = uncertainty = 0.0
    for gradient in (1.0, -3.0, 0.5):
        criterion.observe("w", weight, torch.tensor([[gradient]]))
        now = abs(2.0 * gradient)
        importance = 0.85 * importance + 0.15 * now
        uncertainty = 0.95 * uncertainty + 0.05 * abs(now - importance)
    score = criterion.score(Rows("w", weight, weight != 0))
    assert score.item() == pytest.approx(importance * uncertainty)


def quadratic(scale):
    """E[(x . w)^2] / 2 with independent features of these sizes: its Hessian is diag(scale^2)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(20_000, 3, generator=generator) * torch.tensor(scale)


def test_fisher_ranks_by_the_rise_of_a_known_quadratic_whatever_the_scale_of_a_feature():
    orders = {}
    for scale in ([1.0, 1.0, 1.0], [1.0, 0.1, 1.0]):  # the same function, a feature rescaled
        weight = parameter([[1.0, 0.75 / scale[1], 0.5]])
        optimizer = torch.optim.AdamW([weight], lr=0.0)
        noise = torch.randn(20_000, generator=torch.Generator().manual_seed(1))
        for batch, target in zip(quadratic(scale).split(100), noise.split(100), strict=True):
            # At the optimum of a regression with noise of size 1, E[g^2] is the Hessian / 100.
            optimizer.zero_grad()
            truth = batch @ weight.detach()[0] + target
            (((batch @ weight[0] - truth) ** 2).mean() / 2).backward()
            optimizer.step()
        moment = optimizer.state[weight]["exp_avg_sq"] / (1 - 0.999**200)
        assert moment[0].tolist() == pytest.approx([s**2 / 100 for s in scale], rel=0.35)
        for name in ("magnitude", "fisher"):
            rows = Rows("w", weight.detach(), weight > 0, None, moment)
            scores = CRITERIA[name]().score(rows)[0]
            orders.setdefault(name, []).append(scores.argsort().tolist())
    assert orders["fisher"] == [[2, 1, 0], [2, 1, 0]]
    assert orders["magnitude"] == [[2, 1, 0], [2, 0, 1]]


def test_fisher_reads_the_optimizers_second_moment_or_keeps_its_own():
    torch.manual_seed(0)
    seen = {}
    for kind in (torch.optim.AdamW, torch.optim.SGD):
        weight = parameter([[1.0, 2.0], [3.0, 4.0]])
        optimizer = kind([weight], lr=1e-3)
        pruner = new_pruner(weight, 0.5, criterion="fisher", optimizer=optimizer, total_steps=100)
        generator = torch.Generator().manual_seed(0)
        for t in range(1, 4):
            weight.grad = torch.randn(2, 2, generator=generator)
            pruner.before_update(t)
            optimizer.step()
            pruner.step(t)
        moments = pruner.observation.moments
        seen[kind] = moments.of("w", slice(None))
        assert bool(moments.own) == (kind is torch.optim.SGD)
        assert pruner.pending == {0}, "the first 5 of 100 steps wait"
    assert torch.allclose(*seen.values(), rtol=1e-5)


def test_swap_exchanges_while_the_benefit_exceeds_the_cost():
    """One edge on a 2 x 4 matrix, by hand, with v = 0.1 everywhere and c = 10: c v / 2 = 0.5."""
    weight = parameter([[2.0, 1.0, 0.6, 0.1], [3.0, 0.5, 0.4, 0.2]])
    benefit = CRITERIA["benefit"]()
    regrowth = Regrowth(benefit, ratio=0.9, until=1.0, protect_ratio=0.5)
    pruner = new_pruner(
        weight,
        0.5,
        pruned_weights="stored",
        regrowth=regrowth,
        returns_at="edges",
        num_cycles=2,
        reset_ratio=1.0,
        recompute="climb",
    )
    pruner.observation.moments.of = lambda name, rows: torch.full((2, 4), 0.1)[rows]
    take_step(pruner, 1, [[0.0] * 4] * 2)
    assert weight.tolist() == [[2.0, 1.0, pytest.approx(0.6), 0.0], [3.0, 0.0, 0.0, 0.0]]
    gradient = [[0, 0, 0, -9], [0, -1, 4, -0.5]]
    for t in (2, 3, 4, 5):  # step 5 is the edge; the mean of 5 gradients is 0.8 of this
        done = take_step(pruner, t, gradient)
    # Costs of the kept, 0.5 w^2: 2.0, 0.5, 0.18 and 4.5. Two standard errors of a mean gradient are
    # 2 sqrt(0.1 / 5) = 0.283. Benefits, -g W - 0.283 |W| - 0.5 W^2 with g = 0.8 of the above: of
    # 0.1, 0.72 - 0.028 - 0.005 = 0.687; of 0.5, 0.4 - 0.141 - 0.125 = 0.134; of 0.4, less than 0;
    # of 0.2, 0.08 - 0.057 - 0.02 = 0.003. The four best of all eight: 4.5, 2.0, 0.687, 0.5.
    assert done.is_reset
    assert (done.benefit, done.cost) == (pytest.approx(0.687, abs=1e-3), pytest.approx(0.18))
    assert weight.tolist() == [[2.0, 1.0, 0.0, pytest.approx(0.1)], [3.0, 0.0, 0.0, 0.0]]
    assert pruner.policy.values["w"][0, 2].item() == pytest.approx(0.6)
    assert int(pruner.num_returned) == 1
    assert pruner.ranking.protected["w"].int().tolist() == [[0, 0, 0, 1], [0, 0, 0, 0]]
    assert not benefit.memory["gradient_sum"]["w"].any(), "evidence on the old mask is forgotten"


def test_what_was_exchanged_is_protected_for_a_while():
    weight = parameter([[8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]])
    regrowth = Regrowth(CRITERIA["gradient"](), ratio=0.9, until=0.25, protect_ratio=0.5)
    pruner = new_pruner(weight, 0.5, regrowth=regrowth, pruned_weights="stored")
    take_step(pruner, 1, [[0.0] * 8])
    take_step(pruner, 2, [[0.0] * 7 + [9.0]])  # 0.45 of 4 kept: one is exchanged
    for t in (3, 4, 5, 6):
        assert pruner.masks["w"].int().tolist() == [[1, 1, 1, 0, 0, 0, 0, 1]]
        assert pruner.ranking.protected["w"].int().tolist() == [[0] * 7 + [1]]
        take_step(pruner, t, [[0.0] * 8])
    pruner.ranking.prune_(("w",), 5, pruner.criterion, may_return=False)
    assert pruner.masks["w"].int().tolist() == [[1, 1, 0, 0, 0, 0, 0, 1]], "6 goes before 1"
    take_step(pruner, 7, [[0.0] * 8])
    assert not pruner.ranking.protected


@pytest.mark.parametrize(("pruned_weights", "waits"), [("zero", True), ("stored", False)])
def test_a_reset_waits_for_a_movement_only_where_weights_return_from_zero(pruned_weights, waits):
    weight = parameter([[4.0, 3.0, 2.0, 1.0]])
    options = {"num_cycles": 2, "reset_ratio": 0.5, "recompute": "climb"}
    pruner = new_pruner(weight, 0.5, pruned_weights=pruned_weights, ramp_ratio=0.5, **options)
    for t in range(1, 6):  # step 5 is the edge; nothing moves any weight
        take_step(pruner, t, [[0.0] * 4])
    assert bool(pruner.pending) == waits
    assert weight.tolist() == [[4.0, 3.0, 0.0 if waits else 2.0, 0.0]]


@pytest.mark.parametrize("criterion", ["movement", "snip", "platon", "benefit", "fisher"])
def test_an_overflow_does_not_stay_in_what_was_observed(criterion):
    weight = parameter([[4.0, 3.0, 2.0, 1.0]])
    pruner = new_pruner(weight, 0.5, criterion=criterion, total_steps=100)
    for t, gradient in enumerate([1.0, float("inf"), float("nan"), 2.0], 1):
        weight.grad = torch.full_like(weight, gradient)
        pruner.before_update(t)
    memory = [m for quantity in pruner.criterion.memory.values() for m in quantity.values()]
    memory += pruner.observation.moments.own.values()
    assert memory
    assert all(tensor.isfinite().all() for tensor in memory)
