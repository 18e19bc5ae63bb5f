"""Linear layers that multiply with torch's own sparse matrices, to compare times with."""

import copy

import torch
from torch import Tensor, nn

_MIN_SPARSITY = 0.5


class CsrLinear(nn.Module):
    """A Linear layer whose weight is in CSR: kept values, and their columns, row by row."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight.detach().to_sparse_csr()
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        out = (self.weight @ x.reshape(-1, x.shape[-1]).T).T
        if self.bias is not None:
            out = out + self.bias
        return out.view(*x.shape[:-1], -1)


def replace_by_csr(model: nn.Module) -> nn.Module:
    """Return a copy of a model in which the layers with at least half zeros are in CSR.

    Raises:
        ValueError: There are none.
    """
    model, num_replaced = copy.deepcopy(model), 0
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear and _sparsity(child.weight) >= _MIN_SPARSITY:
                setattr(module, name, CsrLinear(child))
                num_replaced += 1
    if not num_replaced:
        raise ValueError("no layer of the class Linear has half zeros or more")
    return model


def _sparsity(weight: Tensor) -> float:
    return 1 - int(torch.count_nonzero(weight)) / weight.numel()
