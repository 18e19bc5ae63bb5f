"""The layer for a GPU, whose arithmetic is tested in tests/gpu."""

import copy

import pytest
import torch
from torch import nn

from hf_cyclprune.inference import accelerate, semi_structured
from hf_cyclprune.inference.semi_structured import SemiStructuredLinear, find_obstacle


def linear_2_4(out_features=16, in_features=32, dtype=torch.bfloat16):
    torch.manual_seed(0)
    linear = nn.Linear(in_features, out_features, dtype=dtype)
    linear.weight.data.unflatten(1, (-1, 4))[:, :, 1:3] = 0.0
    return linear


@pytest.fixture
def _no_gpu_needed(monkeypatch):
    """A dense tensor takes the place of the compressed one."""
    monkeypatch.setattr(semi_structured, "to_sparse_semi_structured", torch.clone)


@pytest.mark.usefixtures("_no_gpu_needed")
def test_it_takes_inputs_of_any_shape_and_keeps_the_state_dict():
    linear = linear_2_4()
    layer = SemiStructuredLinear(linear)
    x = torch.randn(3, 5, 32, dtype=torch.bfloat16).transpose(0, 1)
    torch.testing.assert_close(layer(x), linear(x), rtol=1e-2, atol=1e-2)
    assert torch.equal(layer.state_dict()["weight"], linear.weight)
    assert torch.equal(layer.state_dict()["bias"], linear.bias)


@pytest.mark.usefixtures("_no_gpu_needed")
def test_a_copy_compresses_the_weight_anew():
    layer = SemiStructuredLinear(linear_2_4())
    twin = copy.deepcopy(layer)
    assert twin.compressed is not layer.compressed
    assert torch.equal(twin.weight, layer.weight)
    assert torch.equal(twin.bias, layer.bias)


def test_torchs_refusal_is_the_reason_for_a_dense_layer():
    found = accelerate._replace_on_gpu(linear_2_4(), None)
    assert found.startswith("torch cannot: Error original_tensor.device= cpu is not supported!")


@pytest.mark.usefixtures("_no_gpu_needed")
def test_a_layer_that_fits_is_replaced():
    assert isinstance(accelerate._replace_on_gpu(linear_2_4(), None), SemiStructuredLinear)


def test_a_weight_that_is_not_2_4_or_of_another_dtype_is_named():
    assert find_obstacle(linear_2_4().weight) is None
    assert "float32" in find_obstacle(linear_2_4(dtype=torch.float32).weight)
    assert "not 2:4" in find_obstacle(nn.Linear(30, 16, dtype=torch.float16).weight)
    dense = nn.Linear(32, 16, dtype=torch.float16).weight
    assert "not 2:4" in find_obstacle(dense)
