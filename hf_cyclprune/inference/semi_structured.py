"""A Linear layer on a CUDA GPU with a 2:4 weight, which its sparse tensor cores multiply with."""

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.sparse import to_sparse_semi_structured

from hf_cyclprune.inference.frozen import FrozenLinear

_DTYPES = (torch.float16, torch.bfloat16)


class SemiStructuredLinear(FrozenLinear):
    """A Linear layer that holds half of its weight, and where that is."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        with warnings.catch_warnings():  # torch calls its interface a prototype
            warnings.filterwarnings("ignore", message="The PyTorch API of SparseSemiStructured")
            self.compressed = to_sparse_semi_structured(linear.weight.detach().contiguous())

    def to_dense(self) -> Tensor:
        dense: Tensor = self.compressed.to_dense()  # type: ignore[no-untyped-call]
        return dense

    def __deepcopy__(self, memo: dict[int, object]) -> "SemiStructuredLinear":
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(
            self.to_dense(), requires_grad=False
        )  # torch copies no other form
        linear.bias = None if self.bias is None else nn.Parameter(self.bias, requires_grad=False)
        layer = type(self)(linear)
        layer.is_transposed = self.is_transposed
        return layer

    def multiply(self, x: Tensor) -> Tensor:
        return functional.linear(x.contiguous(), self.compressed, self.bias)


def find_obstacle(weight: Tensor) -> str | None:
    """Say why the GPU cannot use the zeros of this weight; return None if it can, by torch's rules.

    >>> find_obstacle(torch.ones(16, 16, dtype=torch.float16))
    'it is not 2:4: some 4 consecutive inputs have more than 2 kept weights'
    """
    if weight.dtype not in _DTYPES:
        return (
            f"its weights are {str(weight.dtype).removeprefix('torch.')}, not float16 or bfloat16"
        )
    groups = weight.shape[1] // 4
    is_kept = (weight != 0)[:, : 4 * groups].reshape(len(weight), groups, 4)
    if weight.shape[1] % 4 or bool((is_kept.sum(2) > 2).any()):
        return "it is not 2:4: some 4 consecutive inputs have more than 2 kept weights"
    return None
