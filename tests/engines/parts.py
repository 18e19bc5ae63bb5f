"""Weights that are divided unevenly among two ranks, some whole: the masks are those of one."""

from unittest.mock import patch

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from hf_cyclprune import CRITERIA, Pruner, Schedule
from hf_cyclprune.pruning.patterns import NM, SCOPES, Unstructured

SHAPES = {"odd": (63, 32), "one row": (1, 32), "small": (5, 8), "whole": (6, 16), "long": (2, 64)}
PATTERNS = [*map(Unstructured, SCOPES), Unstructured("global", 0.1), NM(2, 4)]


def draw(seed):
    """Weights with many ties, both zeros, NaN and infinities."""
    generator = torch.Generator().manual_seed(seed)
    for name, shape in SHAPES.items():
        weight = (torch.randn(shape, generator=generator) * 4).round() / 4
        for value in (float("nan"), -0.0, float("inf"), float("-inf")):
            weight[torch.rand(shape, generator=generator) < 0.02] = value
        yield name, weight


def new_pruner(weights, pattern, criterion):
    sparsity = pattern.sparsity if isinstance(pattern, NM) else 0.7
    return Pruner(weights, Schedule(sparsity, total_steps=4), CRITERIA[criterion](), pattern)


def check_parts():
    """Prune divided and whole weights to several sparsities; compare all masks."""
    if not distributed.is_initialized():
        distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    for seed, pattern in enumerate(PATTERNS):
        for criterion in ("magnitude", "random"):
            wholes = {name: nn.Parameter(weight) for name, weight in draw(seed)}
            parts = {
                name: nn.Parameter(
                    weight.detach().clone()
                    if name == "whole"
                    else distribute_tensor(weight.detach(), mesh, [Shard(0)])
                )
                for name, weight in wholes.items()
            }
            alone, together = (new_pruner(w, pattern, criterion) for w in (wholes, parts))
            for sparsity in (0.2, alone.schedule.sparsity):
                alone.prune_to(sparsity)
                together.prune_to(sparsity)
                together.count_pruned()  # in the masks: a whole weight counts once
                assert alone.num_pruned == together.num_pruned
                for name, mask in alone.masks.items():
                    found = together.shards[name].gather(together.masks[name])
                    assert torch.equal(found, mask), (pattern, criterion, sparsity, name)
    by_columns = {"a": nn.Parameter(distribute_tensor(torch.ones(4, 4), mesh, [Shard(1)]))}
    with pytest.raises(ValueError, match=r"divide a weight by its rows; got 'a' with .*dim=1"):
        new_pruner(by_columns, Unstructured("global"), "magnitude")
    assert bytes_of_a_pruning_step(mesh, 64) == bytes_of_a_pruning_step(mesh, 512)


def bytes_of_a_pruning_step(mesh, num_rows):
    """Prune two matrices with this many rows together; return the bytes that a rank sends."""
    weights = {
        name: nn.Parameter(distribute_tensor(torch.randn(num_rows, 64), mesh, [Shard(0)]))
        for name in "ab"
    }
    pruner, sent = new_pruner(weights, Unstructured("global"), "magnitude"), []

    def counted(collective, argument):
        def call(*args, **kwargs):
            sent.append(args[argument].numel() * args[argument].element_size())
            return collective(*args, **kwargs)

        return call

    with (
        patch.object(distributed, "all_reduce", counted(distributed.all_reduce, 0)),
        patch.object(distributed, "all_gather", counted(distributed.all_gather, 1)),
    ):
        pruner.prune_to(0.5)
    assert sum(sent) <= 1.1 * 2**20, "independent of the size of the model"
    print("bytes of a global pruning step", sent, flush=True)
    return sum(sent)
