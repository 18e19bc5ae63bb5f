"""The hooks on layers, and the criterion that reads the norms of their inputs."""

import copy
import pickle

import pytest
import torch
from torch import nn

from hf_cyclprune import PruningConfig, find_targets
from hf_cyclprune.pruning.activations import hook_inputs
from hf_cyclprune.pruning.criteria import FirstCycle
from hf_cyclprune.pruning.criterion import CRITERIA, Rows
from hf_cyclprune.pruning.targets import find_layers


@pytest.fixture
def watched():
    """A layer, the inputs that its hook has shown, and the hook's handle."""
    layer, seen = nn.Linear(2, 3), []
    (handle,) = hook_inputs({"weight": layer}, lambda name, x: seen.append((name, x)))
    return layer, seen, handle


def test_wanda_is_the_weight_times_the_norm_of_its_input_feature():
    criterion = CRITERIA["wanda"]()
    weight = torch.tensor([[1.0, -2.0], [-3.0, 0.5]])
    criterion.observe_input("w", torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    criterion.observe_input("w", torch.tensor([[[4.0, 2.0]], [[0.0, 2.0]]]))
    # Norms: sqrt(9 + 16) = 5 and sqrt(1 + 4 + 4) = 3.
    assert criterion.memory["square_sum"]["w"].tolist() == pytest.approx([25.0, 9.0])
    scores = criterion.score(Rows("w", weight, weight != 0))
    assert scores.flatten().tolist() == pytest.approx([5.0, 6.0, 15.0, 1.5])
    rows = slice(1, 2)
    some = criterion.score(Rows("w", weight[rows], weight[rows] != 0, place=rows))
    assert torch.equal(some, scores[rows])


def test_a_batch_that_overflowed_says_nothing_of_its_feature():
    criterion = CRITERIA["wanda"]()
    criterion.observe_input("w", torch.tensor([[torch.inf, 2.0], [torch.nan, 0.0]]))
    criterion.observe_input("w", torch.tensor([[300.0, 1.0]], dtype=torch.float16))
    assert criterion.memory["square_sum"]["w"].tolist() == pytest.approx([90_000.0, 5.0])


def test_wanda_without_inputs_says_what_to_do():
    weight = torch.ones(2, 2)
    with pytest.raises(ValueError, match=r"has seen none\. Pass model= to build_pruner"):
        CRITERIA["wanda"]().score(Rows("w", weight, weight > 0))


def test_a_layer_that_is_never_called_scores_zero():
    criterion, weight = CRITERIA["wanda"](), torch.ones(2, 2)
    criterion.observe_input("used", weight)
    assert not criterion.score(Rows("unused", weight, weight > 0)).any()


def test_inputs_are_seen_in_training_only_and_without_a_graph(watched):
    layer, seen, handle = watched
    x = torch.ones(4, 2, requires_grad=True)
    layer(x).sum().backward()
    layer(input=2 * x)
    layer.eval()(x)
    assert [(name, value.sum().item()) for name, value in seen] == [("weight", 8), ("weight", 16)]
    assert not any(value.requires_grad for _, value in seen)
    handle.remove()
    layer.train()(x)
    assert len(seen) == 2


def test_inputs_of_half_precision_are_summed_in_single(watched):
    layer, _, _ = watched
    criterion = CRITERIA["wanda"]()
    hook_inputs({"weight": layer}, criterion.observe_input)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(torch.full((1000, 2), 1.01))
    (total,) = criterion.memory["square_sum"].values()
    assert total.dtype == torch.float32
    assert total.tolist() == pytest.approx([1020.1, 1020.1])


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_of_the_model_shows_nothing(watched, clone):
    layer, seen, _ = watched
    clone(layer)(torch.ones(1, 2))
    assert not seen
    layer(torch.ones(1, 2))
    assert len(seen) == 1


def test_a_loop_of_ones_own_gives_the_model_and_can_take_the_hooks_away(tiny_bert):
    model = tiny_bert()
    config, targets = PruningConfig(method="wanda", sparsity=0.5), find_targets(model)
    pruner = config.build_pruner(targets, 2, model=model)
    model.train()(input_ids=torch.arange(8)[None])
    sums = pruner.criterion.memory["square_sum"]
    assert {name: len(total) for name, total in sums.items()} == {
        name: weight.shape[1] for name, weight in targets.items()
    }
    pruner.step(1)
    pruner.observation.unwatch()
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_other_criteria_hook_nothing(tiny_bert):
    model = tiny_bert()
    PruningConfig(sparsity=0.5).build_pruner(find_targets(model), 4, model=model)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_only_linear_layers_have_inputs_to_look_at(tiny_bert):
    model = tiny_bert()
    targets = find_targets(model, targets=["word_embeddings"])
    with pytest.raises(ValueError, match=r"word_embeddings.weight' is not.*ignore="):
        find_layers(model, targets)
    experts = torch.nn.Module()
    experts.gate_up_proj = torch.nn.Parameter(torch.ones(2, 4, 4))
    with pytest.raises(ValueError, match=r"'0.gate_up_proj' is not.*ignore="):
        find_layers(torch.nn.Sequential(experts), ["0.gate_up_proj"])


def test_a_linear_layer_may_be_the_whole_model():
    layer = torch.nn.Linear(4, 2)
    assert find_layers(layer, ["weight"]) == {"weight": layer}


def test_the_criterion_of_the_first_cycle_looks_at_inputs_too():
    both = FirstCycle(CRITERIA["wanda"](), CRITERIA["magnitude"]())
    weight = torch.ones(1, 2)
    both.observe_input("w", torch.tensor([[3.0, 4.0]]))
    assert both.looks_at_inputs
    assert both.memory["square_sum"]["w"].tolist() == [9.0, 16.0]
    both.begin_cycle(0)
    assert both.score(Rows("w", weight, weight > 0)).tolist() == [[3.0, 4.0]]
    both.begin_cycle(1)
    assert both.score(Rows("w", weight, weight > 0)).tolist() == [[1.0, 1.0]]
