"""The kept weights after pruning, solved again, against answers found in other ways."""

import pytest
import torch
from torch import nn

from hf_cyclprune.pruning import compensation
from hf_cyclprune.pruning.activations import show_inputs
from hf_cyclprune.pruning.compensation import compensate_, solve_rows


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Chain(nn.Module):
    """Two blocks of one layer each, and a layer that nothing calls."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(6, 5), nn.Linear(5, 4)])
        self.unused = nn.Linear(3, 3)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator).to(dtype)

    def forward(self, x, attention_mask=None):
        return self.blocks[1](torch.tanh(self.blocks[0](x)))

    @property
    def layers(self):
        return {f"blocks.{i}.weight": layer for i, layer in enumerate(self.blocks)}


def masks_of(layers, sparsity=0.5):
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.rand(layer.weight.shape, generator=generator) >= sparsity
        for name, layer in layers.items()
    }


def test_a_kept_weight_takes_over_from_a_pruned_one_with_the_same_input():
    x = torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0], [0.0, 0.0, 3.0]]).double()
    weight = torch.tensor([[2.0, 5.0, 7.0], [1.0, -4.0, 0.5]]).double()
    kept = torch.tensor([[True, False, True], [False, True, False]])
    solved = solve_rows(weight, kept, x.t() @ x, damping=0.0)
    assert solved.tolist() == [pytest.approx([7.0, 0.0, 7.0]), pytest.approx([0.0, -3.0, 0.0])]
    # Row 1, damped: X^T X is 5 for the first two and 9 for the third, so lambda = 0.3 * 19 / 3 =
    # 1.9, and the kept weight moves by 5 * 5 / (5 + 1.9).
    damped = solve_rows(weight, kept, x.t() @ x, damping=0.3)
    assert damped[0].tolist() == pytest.approx([2.0 + 25.0 / 6.9, 0.0, 7.0])


@pytest.mark.parametrize("max_numbers", [1, 40, 2**24], ids="{} numbers at a time".format)
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9, 1.0])
def test_every_row_is_the_least_squares_solution(monkeypatch, sparsity, max_numbers):
    monkeypatch.setattr(compensation, "MAX_NUMBERS", max_numbers)
    x, weight = draw(50, 12), draw(9, 12, seed=1)
    kept = torch.rand(9, 12, generator=torch.Generator().manual_seed(2)) >= sparsity
    solved = solve_rows(weight, kept, x.t() @ x, damping=0.0)
    assert not solved[~kept].any()
    for row, old, mask in zip(solved, weight, kept, strict=True):
        expected = torch.linalg.lstsq(x[:, mask], (x @ old)[:, None]).solution[:, 0]
        assert torch.allclose(row[mask], expected, rtol=1e-9, atol=1e-12)


def test_where_inputs_leave_something_open_the_change_is_the_smallest():
    x, weight = draw(3, 12), draw(5, 12, seed=1)  # 12 unknowns and 3 equations
    kept = torch.rand(5, 12, generator=torch.Generator().manual_seed(2)) >= 0.3
    solved = solve_rows(weight, kept, x.t() @ x, damping=0.0)
    for row, old, mask in zip(solved, weight, kept, strict=True):
        missing = x[:, ~mask] @ old[~mask]
        expected = old[mask] + torch.linalg.pinv(x[:, mask]) @ missing
        assert torch.allclose(row[mask], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("damping", [0.0, 0.01, 10.0])
@pytest.mark.parametrize("num_tokens", [1, 4, 40])
def test_the_error_of_no_layer_grows_and_pruned_weights_are_zero_to_the_bit(
    num_tokens, damping, dtype
):
    model, batches = Chain(dtype), [{"x": draw(num_tokens, 6).to(dtype)}]
    masks = masks_of(model.layers)
    errors = compensate_(model, model.layers, masks, batches, damping)
    assert errors.keys() == masks.keys()
    assert all(0 <= solved <= masked for masked, solved in errors.values())
    assert sum(solved < masked for masked, solved in errors.values()) > 0
    for name, layer in model.layers.items():
        bits = layer.weight.detach().view(torch.int32 if dtype.itemsize == 4 else torch.int16)
        assert not bits[~masks[name]].any()


def test_errors_are_those_of_the_outputs_and_a_block_sees_what_the_pruned_ones_give():
    model, dense, x = Chain(), Chain(), draw(40, 6).float()
    masks = masks_of(model.layers)
    errors = compensate_(model, model.layers, masks, [{"x": x[:25]}, {"x": x[25:]}])
    inputs = x
    for (name, layer), old in zip(model.layers.items(), dense.blocks, strict=True):
        out = inputs @ old.weight.t()
        masked = inputs @ (old.weight * masks[name]).t()
        found = [(out - y).norm() / out.norm() for y in (masked, inputs @ layer.weight.t())]
        assert errors[name] == pytest.approx([value.item() for value in found], rel=1e-4)
        inputs = torch.tanh(layer(inputs))  # of the layer as it is now


def test_a_layer_without_inputs_is_masked():
    model = Chain()
    layers = {**model.layers, "unused.weight": model.unused}
    masks, before = masks_of(layers), model.unused.weight.detach().clone()
    errors = compensate_(model, layers, masks, [{"x": draw(9, 6).float()}])
    assert "unused.weight" not in errors
    assert torch.equal(model.unused.weight, before * masks["unused.weight"])


def test_inputs_that_are_zero_have_no_error():
    model = Chain()
    errors = compensate_(model, model.layers, masks_of(model.layers), [{"x": torch.zeros(4, 6)}])
    assert errors["blocks.0.weight"] == (0.0, 0.0)


def test_inputs_that_are_not_finite_are_refused():
    model, x = Chain(), torch.ones(4, 6)
    x[0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"'blocks\.0\.weight' gets NaN or infinity"):
        compensate_(model, model.layers, masks_of(model.layers), [{"x": x}])


def test_padding_is_left_out_and_modes_are_restored():
    model, seen = Chain(), []
    model.train()
    model.blocks[1].eval()
    batch = {"x": torch.ones(2, 3, 6), "attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])}
    show_inputs(model, model.layers, [batch], lambda name, x: seen.append((name, tuple(x.shape))))
    assert seen == [("blocks.0.weight", (3, 6)), ("blocks.1.weight", (3, 5))]
    assert [model.training, model.blocks[0].training, model.blocks[1].training] == [1, 1, 0]
    assert not any(module._forward_pre_hooks for module in model.modules())
