"""A Linear layer that holds its weight in another form, and can only be used for inference."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_REMEDY = (
    "An accelerated model cannot be trained: its layers hold no dense weights that an optimizer "
    "could change. Save it, load it again with from_pretrained, train, and call accelerate_ after."
)


class FrozenLinear(nn.Module):
    """A Linear layer for inference only.

    Its entries in the state_dict are those of the Linear layer, dense, so that `save_pretrained`
    writes an ordinary model; they are made when they are asked for. A state_dict cannot be loaded.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.out_features, linear.in_features
        self.dtype, self.device = linear.weight.dtype, linear.weight.device
        self.bias = None if linear.bias is None else linear.bias.detach().clone()
        self.is_transposed = False
        """Whether the entry in the state_dict has the inputs first, as that of a Conv1D has."""
        self.training = False

    @abstractmethod
    def multiply(self, x: Tensor) -> Tensor:
        """Return the outputs for a matrix with one token in each row."""

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """A dense copy of the weight, made at every access."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, from which no gradient can be computed.

        Raises:
            ValueError: The input is on another device than the layer.
        """
        if x.device != self.device:
            raise ValueError(
                f"The model was accelerated for '{self.device}'; its input is on '{x.device}'. "
                "Move the input there."
            )
        tokens = x.reshape(-1, self.in_features)
        is_recorded = torch.is_grad_enabled() and x.requires_grad
        apply = _NoBackward.apply if is_recorded else _multiply
        out: Tensor = apply(tokens, self)
        return out.view(*x.shape[:-1], self.out_features)

    def train(self, mode: bool = True) -> "FrozenLinear":
        """Do nothing for `mode` False.

        Raises:
            RuntimeError: `mode` is True.
        """
        if mode:
            raise RuntimeError(_REMEDY)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FrozenLinear":
        now = fn(torch.empty(0, dtype=self.dtype, device=self.device))
        if (now.device, now.dtype) != (self.device, self.dtype):
            raise ValueError(
                f"An accelerated model stays on '{self.device}' and in {self.dtype}. Load it "
                "again, move or convert it, and call accelerate_ after."
            )
        return self

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        weight = self.weight
        destination[prefix + "weight"] = weight.t().contiguous() if self.is_transposed else weight
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        raise RuntimeError(
            f"'{prefix}weight' cannot be loaded into an accelerated model. Load the state_dict "
            "into the dense model, and call accelerate_ after."
        )


def _multiply(x: Tensor, layer: FrozenLinear) -> Tensor:
    return layer.multiply(x)


class _NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLinear) -> Tensor:
        return layer.multiply(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(_REMEDY)
