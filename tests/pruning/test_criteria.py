import math
import subprocess
import sys

import pytest
import torch

from hf_cyclprune.pruning.criteria import CRITERIA, Criterion, FirstCycle, criterion
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


def score(name, weight, **options):
    with torch.no_grad():
        return CRITERIA[name](**options).score("layer.weight", weight, weight.grad)


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
    first = criterion.score("a", weight, weight.grad)
    criterion.score("b", weight, weight.grad)
    criterion.begin_cycle(1)
    assert torch.equal(criterion.score("a", weight, weight.grad), first)


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
    weight = torch.nn.Parameter(torch.ones(2, 2))
    pruner = Pruner({"layer.weight": weight}, Schedule(0.5, 1), CRITERIA[name](), Unstructured())
    if not CRITERIA[name].needs_gradient:
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
        draws.append(criterion.score(name, weight).flatten())
        assert draws[-1].min() >= 0
        assert draws[-1].max() < 1
        assert draws[-1].mean() == pytest.approx(0.5, abs=0.02)
    correlations = torch.corrcoef(torch.stack(draws)) - torch.eye(4)
    assert correlations.abs().max() < 0.05


def test_random_scores_are_the_same_in_another_process_and_leave_the_global_generator_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    program = (
        "import torch\n"
        "from hf_cyclprune.pruning.criteria import CRITERIA\n"
        "criterion = CRITERIA['random'](seed=5)\n"
        "criterion.begin_cycle(2)\n"
        "print(criterion.score('layer.weight', torch.ones(3, 4)).tolist())\n"
    )
    command = [sys.executable, "-c", program]
    other = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    criterion = CRITERIA["random"](seed=5)
    criterion.begin_cycle(2)
    assert other.strip() == str(criterion.score("layer.weight", torch.ones(3, 4)).tolist())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr("hf_cyclprune.pruning.criteria.CRITERIA", mine := dict(CRITERIA))
    return mine


def test_a_function_becomes_a_criterion_and_stays_a_function(registry):
    @criterion("product", is_elementwise=True, needs_gradient=True)
    def product(weight, gradient):
        """w g, signed."""
        return weight * gradient

    made = registry["product"](seed=3)
    assert made.is_elementwise
    assert made.needs_gradient
    assert made.is_signed
    assert made.seed == 3
    assert type(made).__doc__ == "w g, signed."
    ones = torch.ones(2, 2)
    assert torch.equal(made.score("a", 2 * ones, 3 * ones), 6 * ones)
    assert torch.equal(product(2 * ones, 3 * ones), 6 * ones)


def test_a_class_is_registered_as_it_is(registry):
    @criterion("mine")
    class Mine(Criterion):
        def score(self, name, weight, gradient=None):
            return weight

    assert registry["mine"] is Mine


def test_the_first_cycle_can_have_a_criterion_of_its_own():
    both = FirstCycle(CRITERIA["random"](seed=1), CRITERIA["taylor"]())
    weight = weight_with_gradient()
    both.begin_cycle(0)
    assert not both.needs_gradient
    random = CRITERIA["random"](seed=1)
    assert torch.equal(both.score("a", weight), random.score("a", weight))
    both.begin_cycle(1)
    assert both.needs_gradient
    assert torch.equal(
        both.score("a", weight, weight.grad), CRITERIA["taylor"]().score("a", weight, weight.grad)
    )
