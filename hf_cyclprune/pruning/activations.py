"""The inputs of the layers: hooks that show them, and the criterion that scores by them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hf_cyclprune.engines.ranks import sum_over_processes
from hf_cyclprune.pruning.criteria import magnitude
from hf_cyclprune.pruning.criterion import Criterion, Rows, criterion

Observer = Callable[[str, Tensor], None]
"""Takes the name of a target and a batch of inputs of its layer.  # (N, I)"""

Batch = Mapping[str, Tensor]
"""Keyword arguments of a model, as a DataLoader gives them."""


class InputHook:
    """Shows the inputs of one layer; a copy of the layer, or a pickled one, shows nothing."""

    def __init__(
        self, name: str = "", see: Observer | None = None, *, only_training: bool = True
    ) -> None:
        self._name, self._see, self._only_training = name, see, only_training

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._see is not None and (module.training or not self._only_training):
            inputs = args[0] if args else kwargs["input"]
            with torch.no_grad():
                self._see(self._name, inputs.detach())

    def __reduce__(self) -> tuple[type["InputHook"], tuple[()]]:
        return InputHook, ()


def hook_inputs(
    layers: Mapping[str, nn.Module], see: Observer, *, only_training: bool = True
) -> list[RemovableHandle]:
    """Show `see` every input that these layers get from now on; return what removes the hooks.

    Args:
        layers: name of a target -> the layer that it belongs to.
        see: called before each forward pass of a layer, without gradients.
        only_training: leave out what a layer gets in evaluation mode.
    """
    return [
        layer.register_forward_pre_hook(
            InputHook(name, see, only_training=only_training), with_kwargs=True
        )
        for name, layer in layers.items()
    ]


def show_inputs(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Batch], see: Observer
) -> None:
    """Run the batches through the model in evaluation mode, and show the inputs of these layers.

    Tokens that pad a sequence are left out where the batch has an attention mask of two dimensions.
    """
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    padding: list[Tensor | None] = [None]

    def see_tokens(name: str, inputs: Tensor) -> None:
        real = padding[0]
        see(name, inputs if real is None or real.shape != inputs.shape[:-1] else inputs[real])

    hooks = hook_inputs(layers, see_tokens, only_training=False)
    try:
        model.eval()
        with torch.no_grad():
            for batch in batches:
                moved = {key: value.to(device) for key, value in batch.items()}
                mask = moved.get("attention_mask")
                padding[0] = mask.bool() if mask is not None else None
                model(**moved)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode


@criterion("wanda")
@dataclass
class Wanda(Criterion):
    """|w_ij| times the norm of input feature j over all tokens that the layer got in training.

    Sun et al. 2023, https://arxiv.org/abs/2306.11695, equation 1. The paper compares weights within
    each output row only. Here an n:m pattern does so too, but unstructured pruning ranks the whole
    matrix, or with `scope="global"` all of them. Tokens that pad a sequence count as others do.

    A pruned weight scores by the value that it would come back with: nearly zero with
    `pruned_weights="zero"`, and with "stored" or "latent" by the value that was kept. Its input
    feature is seen in every step, whether the weight is pruned or not.
    """

    _totals: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    """Name -> sum of the squares of every input feature, in the batches of all processes."""

    is_signed = False
    is_elementwise = True
    looks_at_inputs = True
    shared = frozenset({"square_sum"})

    def begin_cycle(self, cycle: int) -> None:
        for name, total in self.memory.get("square_sum", {}).items():
            self._totals[name] = sum_over_processes(total)

    def observe_input(self, name: str, inputs: Tensor) -> None:
        squares = inputs.flatten(0, -2).float().square().sum(0)
        squares.nan_to_num_(0.0, 0.0, 0.0)  # a batch that overflowed says nothing
        self.remember("square_sum", name, squares).add_(squares)

    def score(self, rows: Rows) -> Tensor:
        if not self.memory.get("square_sum"):
            raise ValueError(
                "The criterion 'wanda' scores by the inputs of the layers, but has seen none. Pass "
                "model= to build_pruner and train in training mode, or calibration= to prune_."
            )
        own = self.memory["square_sum"].get(rows.name, rows.weight.new_zeros(rows.shape[-1]))
        total = self._totals.get(rows.name, own)  # own: where it is not trained
        return magnitude(rows.weight * rows.of_whole(total.sqrt()))
