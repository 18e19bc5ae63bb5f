"""What of DeepSpeed is refused, without DeepSpeed."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_cyclprune.engines.shards import Shards
from hf_cyclprune.engines.zero import check_stage


class DeepSpeedOptimizerWrapper:
    """As accelerate calls its own."""

    def __init__(self, **values):
        self.optimizer = SimpleNamespace(**values)


def test_a_stage_that_divides_nothing_is_refused():
    parameters = {"a": nn.Parameter(torch.ones(2, 2))}
    with pytest.raises(ValueError, match=r"must have stage 1, 2 or 3 .*got stage 0.*Choose stage"):
        Shards(parameters, DeepSpeedOptimizerWrapper())
    parameters["a"]._hp_mapping = None
    check_stage(parameters, DeepSpeedOptimizerWrapper())


def test_round_robin_gradients_are_refused():
    parameters = {"a": nn.Parameter(torch.ones(2, 2))}
    parameters["a"]._hp_mapping = None
    with pytest.raises(ValueError, match="round_robin_gradients must be false"):
        check_stage(parameters, DeepSpeedOptimizerWrapper(round_robin_gradients=True))
