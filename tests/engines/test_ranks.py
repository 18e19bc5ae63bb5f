"""Where tensors are sent from."""

import pytest
import torch
from torch import distributed

from hf_cyclprune.engines.ranks import sendable


@pytest.fixture
def backends(monkeypatch):
    """Says what the group can send from."""

    def say(config):
        monkeypatch.setattr(distributed, "get_backend_config", lambda group: config)

    return say


@pytest.mark.parametrize(
    ("config", "device"),
    [("cpu:gloo,cuda:nccl", "cpu"), ("cpu:gloo", "cpu"), ("meta:nccl", "meta")],
)
def test_a_tensor_moves_only_where_its_group_cannot_send_it(backends, config, device):
    backends(config)
    tensor = torch.ones(3)
    sent = sendable(tensor, None)
    assert sent.device.type == device
    assert (sent is tensor) == (device == "cpu")
