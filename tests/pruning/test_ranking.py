from contextlib import ExitStack

import pytest
import torch

from hf_cyclprune import CRITERIA, Pruner, Schedule
from hf_cyclprune.pruning import ranking
from hf_cyclprune.pruning.criterion import Criterion
from hf_cyclprune.pruning.patterns import Unstructured


class Counted(Criterion):
    """Magnitude that counts how often it is asked."""

    num_asked = 0

    def score(self, rows):
        self.num_asked += 1
        return rows.weight.abs()


@pytest.mark.parametrize(
    ("is_accelerator", "most_kept", "scope", "num_asked"),
    [
        (False, 1000, "global", 3 * 3),  # on a CPU memory is kept low: two histograms and the masks
        (False, 1000, "layer", 3),
        (True, 48, "global", 3),
        (True, 47, "global", 3 * 4),  # three histograms and the masks
        (True, 0, "layer", 3),
    ],
)
def test_an_accelerator_keeps_the_keys_of_a_group_if_they_are_few(
    pretend_accelerator, monkeypatch, is_accelerator, most_kept, scope, num_asked
):
    monkeypatch.setattr(ranking, "MOST_KEPT", most_kept)
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(4, 4, generator=generator) for name in "abc"}
    schedule, pattern = Schedule(0.5, 10), Unstructured(scope)
    plain, counted = CRITERIA["magnitude"](), Counted()
    pruners = [Pruner(dict(weights), schedule, c, pattern) for c in (plain, counted)]
    for pruner, is_other in zip(pruners, (False, is_accelerator), strict=True):
        with pretend_accelerator() if is_other else ExitStack():
            for group, n in enumerate(pruner.demand(0.5)):
                pruner._recompute(group, n)
    assert counted.num_asked == num_asked
    for name, mask in pruners[0].masks.items():
        assert torch.equal(mask, pruners[1].masks[name])
