"""The momentum of what comes back, and nothing else, is set to zero if that is asked for."""

import pytest
import torch
from torch import nn

from hf_cyclprune import PruningConfig
from hf_cyclprune.engines.shards import Shards
from hf_cyclprune.pruning.momentum import MOMENTA, reset_momentum_

OPTIMIZERS = {
    "Adam": (lambda p: torch.optim.AdamW(p, lr=0.01), "exp_avg"),
    "Adam, fused": (lambda p: torch.optim.AdamW(p, lr=0.01, fused=True), "exp_avg"),
    "SGD": (lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9), "momentum_buffer"),
    "SGD without": (lambda p: torch.optim.SGD(p, lr=0.01), None),
    "Adafactor": (lambda p: torch.optim.Adafactor(p, lr=0.01), None),
}


def run(kind, **options):
    """Return masks, zeros of the momentum and state at every step of two cycles of four."""
    torch.manual_seed(0)
    model = nn.Linear(8, 8, bias=False)
    weight, target = model.weight, torch.randn(8, 8)
    optimizer = OPTIMIZERS[kind][0](model.parameters())
    config = PruningConfig("cyclical", sparsity=0.75, num_cycles=2, **options)
    pruner = config.build_pruner({"weight": weight}, 8, optimizer)
    seen = []
    for t in range(1, 9):
        optimizer.zero_grad()
        ((weight - target) ** 2).sum().backward()
        optimizer.step()
        state = {k: v.clone() for k, v in optimizer.state[weight].items() if torch.is_tensor(v)}
        before = pruner.masks["weight"].clone()
        pruner.step(t)
        seen.append((before, pruner.masks["weight"].clone(), state, optimizer.state[weight]))
        seen[-1] = (
            *seen[-1][:3],
            {k: v.clone() for k, v in optimizer.state[weight].items() if torch.is_tensor(v)},
        )
    return seen


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_exactly_the_entries_that_came_back_are_reset(kind):
    changed = OPTIMIZERS[kind][1]
    num_returned = 0
    for before, after, old, new in run(kind, reset_momentum=True):
        returned = after & ~before
        num_returned += int(returned.sum())
        for name, tensor in new.items():
            expected = old[name].masked_fill(returned, 0.0) if name == changed else old[name]
            assert torch.equal(tensor, expected), name
            if name == changed and returned.any():
                assert old[name][returned].any(), "it was not zero before"
    assert num_returned > 0


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_by_default_the_state_is_kept(kind):
    for *_, old, new in run(kind):
        assert all(torch.equal(tensor, old[name]) for name, tensor in new.items())


def test_without_the_optimizer_it_cannot_be_done():
    weight = nn.Parameter(torch.randn(4, 4))
    pruner = PruningConfig(sparsity=0.5, reset_momentum=True).build_pruner({"w": weight}, 8)
    with pytest.raises(ValueError, match=r"reset_momentum needs the optimizer.*build_pruner\("):
        pruner.step(1)


def test_a_state_of_another_shape_is_left_alone():
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = torch.optim.SGD([weight])
    optimizer.state[weight] = {name: torch.ones(4) for name in MOMENTA}
    returned = {"w": torch.ones(2, 2, dtype=torch.bool)}
    reset_momentum_(Shards({"w": weight}), returned, optimizer)
    assert all(tensor.all() for tensor in optimizer.state[weight].values())
