"""A scaler's gradients are unscaled once, and what it will skip is known beforehand."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_cyclprune import PruningConfig
from hf_cyclprune.pruning.loss_scaling import unscale_, will_be_skipped


@pytest.fixture
def scaled():
    """Make accelerate's wrapped optimizer after a backward pass of a scaled loss."""

    def build(factor=1.0, cls=torch.optim.SGD, **options):
        weight = nn.Parameter(torch.ones(1, 3))
        inner = cls([weight], lr=0.5, **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        scaler.scale((weight * torch.tensor([1.0, factor, 3.0])).sum()).backward()
        return weight, SimpleNamespace(optimizer=inner, scaler=scaler)

    return build


def test_gradients_are_divided_by_the_scale_once(scaled):
    weight, optimizer = scaled(2.0)
    assert weight.grad.tolist() == [[8.0, 16.0, 24.0]]
    for _ in range(2):
        unscale_(optimizer)
        assert weight.grad.tolist() == [[1.0, 2.0, 3.0]]
    optimizer.scaler.step(optimizer.optimizer)
    assert weight.tolist() == [[0.5, 0.0, -0.5]], "the step is not unscaled again"


@pytest.mark.parametrize(
    ("cls", "options"), [(torch.optim.SGD, {}), (torch.optim.AdamW, {"fused": True})]
)
@pytest.mark.parametrize(("factor", "is_skipped"), [(2.0, False), (float("inf"), True)])
def test_a_step_that_will_be_skipped_is_known(scaled, factor, is_skipped, cls, options):
    weight, optimizer = scaled(factor, cls, **options)
    unscale_(optimizer)
    assert will_be_skipped(optimizer) is is_skipped
    optimizer.scaler.step(optimizer.optimizer)
    assert torch.equal(weight, torch.ones(1, 3)) is is_skipped


def test_another_error_of_the_scaler_is_raised(scaled):
    _, optimizer = scaled()
    optimizer.scaler.step(optimizer.optimizer)
    with pytest.raises(RuntimeError, match="after step"):
        unscale_(optimizer)


@pytest.mark.parametrize("is_clipped", [True, False])
def test_a_criterion_sees_unscaled_gradients(scaled, is_clipped):
    weight, optimizer = scaled(2.0)
    config = PruningConfig(sparsity=0.5, criterion="snip")
    pruner = config.build_pruner({"w": weight}, 8, optimizer)
    if is_clipped:  # which unscales before
        optimizer.scaler.unscale_(optimizer.optimizer)
    pruner.before_update(1)
    assert pruner.criterion.memory["gradient_sum"]["w"].tolist() == [[1.0, 2.0, 3.0]]


def test_the_decay_of_latent_weights_is_added_to_unscaled_gradients(scaled):
    weight, optimizer = scaled(2.0)
    config = PruningConfig(sparsity=0.5, pruned_weights="latent", pruned_decay=0.5)
    pruner = config.build_pruner({"w": weight}, 8, optimizer)
    pruner.policy.open_()
    pruner.masks["w"][:] = torch.tensor([True, True, False])
    pruner.policy.close_(0.0)
    pruner.before_update(1)
    assert weight.grad.tolist() == [[1.0, 2.0, 3.5]]


@pytest.mark.parametrize("has_scaler", [True, False])
def test_without_a_scaler_nothing_is_done(has_scaler):
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.full((2,), float("inf"))
    inner = torch.optim.SGD([weight])
    optimizer = SimpleNamespace(optimizer=inner, scaler=None) if has_scaler else inner
    for one in (optimizer, None):
        unscale_(one)
        assert not will_be_skipped(one)
    assert weight.grad.isinf().all()
