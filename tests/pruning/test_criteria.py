import math
import zlib

import pytest
import torch

from hf_cyclprune.pruning.criteria import FirstCycle
from hf_cyclprune.pruning.criterion import CRITERIA, Criterion, Rows, criterion
from hf_cyclprune.pruning.patterns import Unstructured
from hf_cyclprune.pruning.pruner import Pruner
from hf_cyclprune.pruning.schedules import Schedule

HOSTILE = [0.0, -0.0, 1.0, -2.0, math.nan, -math.nan, math.inf, -math.inf]


def weight_with_gradient(dtype=torch.float32, *, hostile=False):
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(6, 40, generator=generator).to(dtype))
    weight.grad = torch.randn(6, 40, generator=generator).to(dtype)
    if hostile:
        pool = torch.tensor(HOSTILE).to(dtype)
        weight.data = pool[torch.randint(0, 8, (6, 40), generator=generator)]
        weight.grad = pool[torch.randint(0, 8, (6, 40), generator=generator)]
    return weight


def rows_of(weight, name="layer.weight"):
    """All that can be known of a weight; its squared gradient is the second moment."""
    kept, gradient = torch.ones_like(weight, dtype=torch.bool), weight.grad
    moment = None if gradient is None else gradient.float() ** 2
    return Rows(name, weight.detach(), kept, gradient, moment)


def observed(criterion, weight, name="layer.weight"):
    if criterion.observes:
        criterion.attach({name: weight.detach()})
    criterion.observe_input(name, weight.detach().flip(0))
    if weight.grad is not None:
        criterion.observe(name, weight.detach(), weight.grad.nan_to_num(0.0, 0.0, 0.0))
    return criterion


def score(name, weight, **options):
    with torch.no_grad():
        return observed(CRITERIA[name](**options), weight).score(rows_of(weight))


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_criterion_gives_each_weight_a_floating_score(name, dtype):
    scores = score(name, weight_with_gradient(dtype))
    assert scores.shape == (6, 40)
    assert scores.is_floating_point()
    assert scores.isfinite().all()


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_answers_the_same_when_it_is_asked_again(name):
    weight = weight_with_gradient()
    criterion = CRITERIA[name]()
    criterion.begin_cycle(1)
    first = observed(criterion, weight, "a").score(rows_of(weight, "a")).clone()
    criterion.score(rows_of(weight, "b"))
    criterion.begin_cycle(1)
    assert torch.equal(criterion.score(rows_of(weight, "a")), first)


@pytest.mark.parametrize("name", CRITERIA)
def test_no_criterion_touches_the_weight_or_its_gradient(name):
    weight = weight_with_gradient()
    before, gradient = weight.detach().clone(), weight.grad.clone()
    score(name, weight).zero_()
    assert torch.equal(weight, before)
    assert torch.equal(weight.grad, gradient)


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_criterion_that_promises_no_sign_bits_has_none(name, dtype):
    if CRITERIA[name].is_signed:
        pytest.skip("makes no promise")
    scores = score(name, weight_with_gradient(dtype, hostile=True))
    assert not torch.signbit(scores).any()


@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterion_that_needs_gradients_says_so_and_names_the_weight_without(name):
    if name == "lookahead":
        pytest.skip("needs two weights")
    weight = torch.nn.Parameter(torch.ones(2, 2))
    pruner = Pruner({"layer.weight": weight}, Schedule(0.5, 1), CRITERIA[name](), Unstructured())
    pruner.observation.observe_input("layer.weight", weight.detach())
    if not CRITERIA[name].reads:
        pruner.prune_to(0.5)
        assert weight.count_nonzero() == 2
        return
    with pytest.raises(ValueError, match=r"gradient.*'layer\.weight'.*criterion='magnitude'"):
        pruner.prune_to(0.5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("magnitude", [1.0, 2.0, 0.0, 3.0]),
        ("gradient", [0.5, 4.0, 2.0, 0.0]),
        ("taylor", [0.5, 8.0, 0.0, 0.0]),
    ],
)
def test_scores_by_hand(name, expected):
    weight = torch.nn.Parameter(torch.tensor([[1.0, -2.0], [0.0, -3.0]]))
    weight.grad = torch.tensor([[-0.5, 4.0], [2.0, -0.0]])
    assert score(name, weight).flatten().tolist() == expected


def test_random_scores_are_uniform_and_differ_between_cycles_names_and_seeds():
    weight = torch.ones(100, 100)
    draws = []
    for seed, cycle, name in [(0, 0, "a"), (0, 1, "a"), (0, 0, "b"), (1, 0, "a")]:
        criterion = CRITERIA["random"](seed=seed)
        criterion.begin_cycle(cycle)
        draws.append(criterion.score(rows_of(weight, name)).flatten())
        assert draws[-1].min() >= 0
        assert draws[-1].max() < 1
        assert draws[-1].mean() == pytest.approx(0.5, abs=0.02)
    correlations = torch.corrcoef(torch.stack(draws)) - torch.eye(4)
    assert correlations.abs().max() < 0.05


def test_random_scores_are_the_same_in_every_process_and_leave_the_global_generator_alone():
    """They come from nothing but the seed, the cycle and the name; hash() differs by process."""
    torch.manual_seed(3)
    state = torch.get_rng_state()
    criterion = CRITERIA["random"](seed=5)
    criterion.begin_cycle(2)
    generator = torch.Generator().manual_seed(zlib.crc32(b"5/2/layer.weight"))
    expected = torch.rand(3, 4, generator=generator)
    assert torch.equal(criterion.score(rows_of(torch.ones(3, 4))), expected)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr("hf_cyclprune.pruning.criterion.CRITERIA", mine := dict(CRITERIA))
    return mine


def test_a_function_becomes_a_criterion_and_stays_a_function(registry):
    @criterion("product", is_elementwise=True)
    def product(weight, gradient):
        """w g, signed."""
        return weight * gradient

    made = registry["product"](seed=3)
    assert made.is_elementwise
    assert made.reads == {"gradient"}
    assert made.is_signed
    assert made.seed == 3
    assert type(made).__doc__ == "w g, signed."
    ones = torch.ones(2, 2)
    assert torch.equal(made.score(Rows("a", 2 * ones, ones > 0, 3 * ones)), 6 * ones)
    assert torch.equal(product(2 * ones, 3 * ones), 6 * ones)


def test_scores_of_another_shape_are_refused_with_the_name():
    class Means(Criterion):
        def score(self, rows):
            return rows.weight.abs().mean(1, keepdim=True)

    pruner = Pruner({"a": torch.randn(4, 4)}, Schedule(0.5, 2), Means(), Unstructured())
    with pytest.raises(ValueError, match=r"\(4, 4\); the criterion Means gave \(4, 1\)"):
        pruner.step(2)


def test_a_class_is_registered_as_it_is(registry):
    @criterion("mine")
    class Mine(Criterion):
        def score(self, rows):
            return rows.weight

    assert registry["mine"] is Mine


def test_the_first_cycle_can_have_a_criterion_of_its_own():
    both = FirstCycle(CRITERIA["random"](seed=1), CRITERIA["taylor"]())
    weight = weight_with_gradient()
    both.begin_cycle(0)
    assert not both.reads
    random = CRITERIA["random"](seed=1)
    assert torch.equal(both.score(rows_of(weight)), random.score(rows_of(weight)))
    both.begin_cycle(1)
    assert both.reads == {"gradient"}
    assert torch.equal(both.score(rows_of(weight)), score("taylor", weight))
