import math

import pytest
import torch

from hf_cyclprune import PruningConfig, find_targets, prune_
from hf_cyclprune.pruning.criterion import CRITERIA
from hf_cyclprune.pruning.patterns import SCOPES


def backward(model):
    ids = torch.arange(8)[None]
    model(input_ids=ids, labels=torch.tensor([1])).loss.backward()


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_the_model_has_the_demanded_zeros_and_the_report_counts_them(tiny_bert, scope, sparsity):
    model, dense = tiny_bert(), tiny_bert()
    report = prune_(model, PruningConfig(sparsity=sparsity, scope=scope))
    targets = find_targets(model)
    num_zeros = sum(int((weight == 0).sum()) for weight in targets.values())
    assert report.num_zeros == num_zeros
    assert num_zeros == pytest.approx(sparsity * 4096, abs=0.5 if scope != "layer" else 6)
    assert report.is_at_target
    assert report.target_sparsity == sparsity
    for name, parameter in dense.named_parameters():
        pruned = model.get_parameter(name)
        if name in targets:
            assert torch.equal(pruned[pruned != 0], parameter[pruned != 0])
        else:
            assert torch.equal(pruned, parameter)


def test_the_smallest_magnitudes_of_each_matrix_are_gone(tiny_bert):
    model, dense = tiny_bert(), tiny_bert()
    prune_(model, PruningConfig(sparsity=0.75))
    for name, weight in find_targets(model).items():
        kept, old = weight != 0, dense.get_parameter(name)
        assert old[kept].abs().min() >= old[~kept].abs().max()
        assert not weight.detach().view(torch.int32)[~kept].any()


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8", "3:16"])
def test_nm_holds_in_every_group_and_is_reported(tiny_bert, pattern):
    model = tiny_bert()
    report = prune_(model, PruningConfig(pattern=pattern))
    n, m = map(int, pattern.split(":"))
    for weight in find_targets(model).values():
        assert ((weight.view(-1, m) != 0).sum(1) == n).all()
    assert pattern in report.patterns
    assert report.sparsity == (m - n) / m
    assert report.is_at_target


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_prunes_after_a_backward_pass(tiny_bert, criterion):
    model = tiny_bert()
    backward(model)
    config = PruningConfig(sparsity=0.5, criterion=criterion)
    if CRITERIA[criterion]().is_statistic:
        with pytest.raises(ValueError, match=f"'{criterion}', which averages over optimizer steps"):
            prune_(model, config)
        return
    assert prune_(model, config).num_zeros == 2048


def test_a_criterion_of_gradients_without_a_backward_pass_is_refused(tiny_bert):
    with pytest.raises(ValueError, match="gradient of every target weight, but 'bert"):
        prune_(tiny_bert(), PruningConfig(sparsity=0.5, criterion="taylor"))


def test_targets_and_ignore_are_respected_and_reported(tiny_bert):
    config = PruningConfig(sparsity=0.5, targets=["query", "key"], ignore=[r"layer\.0"])
    report = prune_(tiny_bert(), config)
    assert [w.kind for w in report.weights] == ["attention.self.query", "attention.self.key"]
    assert report.sparsity == 0.5


def test_a_model_that_holds_nan_is_refused_before_anything_is_changed(tiny_bert):
    model = tiny_bert()
    weights = list(find_targets(model).values())
    with torch.no_grad():
        weights[-1][0, 0] = math.nan
    with pytest.raises(ValueError, match=r"target weight .* holds NaN or infinity"):
        prune_(model, PruningConfig(sparsity=0.5))
    assert all((weight != 0).all() for weight in weights)


def test_pruning_again_at_a_higher_sparsity_keeps_the_zeros_and_adds_to_them(tiny_bert):
    model = tiny_bert()
    prune_(model, PruningConfig(sparsity=0.5))
    first = {name: weight == 0 for name, weight in find_targets(model).items()}
    assert prune_(model, PruningConfig(sparsity=0.75)).sparsity == 0.75  # not compounded
    assert all((weight[first[name]] == 0).all() for name, weight in find_targets(model).items())


def test_identities_and_keys_of_the_model_stay(tiny_bert):
    model = tiny_bert()
    before = {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()}
    keys = list(model.state_dict())
    prune_(model, PruningConfig(sparsity=0.5))
    assert {name: (id(p), p.data_ptr()) for name, p in model.named_parameters()} == before
    assert list(model.state_dict()) == keys
