"""A Linear layer that holds its weight in another form, and can only be used for inference."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

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

    @abstractmethod
    def to_dense(self) -> Tensor:
        """Return a dense copy of the weight."""

    @property
    def weight(self) -> Tensor:
        """The weight for code that reads it: dense only while something is computed with it."""
        return _LazyWeight.of(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, from which no gradient can be computed.

        Raises:
            ValueError: The input is on another device than the layer, or has another size.
        """
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(
                f"The last dimension of the input must be {self.in_features}; got the shape "
                f"{tuple(x.shape)}."
            )
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
            raise RuntimeError(f"{_REMEDY} For inference, call model.eval() now.")
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FrozenLinear":
        now = fn(torch.empty(0, dtype=self.dtype, device=self.device))
        if (now.device, now.dtype) != (self.device, self.dtype):
            raise ValueError(
                f"An accelerated model stays on '{self.device}' and in {self.dtype}; some of it "
                "may have been moved or converted now. Load it again, do so, and call accelerate_ "
                "after."
            )
        return self

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        weight = self.to_dense()
        destination[prefix + "weight"] = weight.t().contiguous() if self.is_transposed else weight
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        raise RuntimeError(
            f"'{prefix}weight' cannot be loaded into an accelerated model. Load the state_dict "
            "into the dense model, and call accelerate_ after."
        )


class _LazyWeight(Tensor):
    """Shape, dtype and device of a layer's weight; T5 asks for its dtype in every forward pass."""

    layer: FrozenLinear

    @staticmethod
    def of(layer: FrozenLinear) -> "_LazyWeight":
        """Return the weight of a layer."""
        make: Any = Tensor._make_wrapper_subclass
        shape = (layer.out_features, layer.in_features)
        weight: _LazyWeight = make(_LazyWeight, shape, dtype=layer.dtype, device=layer.device)
        weight.layer = layer
        return weight

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"{self.layer.to_dense()!r}"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        # through a view, or `.data`, a dense copy is changed, which nobody can tell from here
        if func._schema.is_mutable and any(isinstance(x, cls) for x in tree_leaves((args, kwargs))):
            raise RuntimeError(_REMEDY)

        def dense(value: Any) -> Any:
            return value.layer.to_dense() if isinstance(value, cls) else value

        return func(*tree_map(dense, args), **tree_map(dense, kwargs or {}))


def _multiply(x: Tensor, layer: FrozenLinear) -> Tensor:
    return layer.multiply(x)


class _NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLinear) -> Tensor:
        return layer.multiply(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(_REMEDY)
