"""The blocks of a transformer, found by structure and not by a list of architectures.

A stack of blocks is an outermost `ModuleList` of the base model whose entries are modules that
contain Linear layers.
"""

import warnings
from collections.abc import Iterable, Iterator
from math import prod

from torch import Tensor, nn

from hf_cyclprune.engines.shards import shape_of

MOST_UNCOVERED = 0.05
"""The share of the weights in the blocks that may stay dense without a warning."""


def is_linear(module: nn.Module) -> bool:
    """Whether a layer is a Linear, or the Conv1D of GPT-2 in transformers, which is one too."""
    is_conv1d = type(module).__name__ == "Conv1D" and hasattr(module, "nf")
    return is_conv1d or isinstance(module, nn.Linear)


def is_input_last(weight: Tensor) -> bool:
    """Whether the inputs of a target are in its last dimension; those of a Conv1D are not."""
    return getattr(weight, "input_dim", 1) != 0


def input_last(weight: Tensor, values: Tensor | None = None) -> Tensor:
    """Return a view with the inputs of a target in the last dimension.

    Args:
        weight: the target.
        values: what there is for each of its elements; None for the weight itself. Of a view that
            this function returned it returns the first one again.
    """
    values = weight if values is None else values
    return values if is_input_last(weight) else values.t()


def find_stacks(model: nn.Module) -> list[nn.ModuleList]:
    """Return the stacks of blocks of a model, or of the models of transformers inside of it.

    What a module of the user's own puts around these, such as heads in a list, is no block.
    """
    base = getattr(model, "base_model", None)
    bases = [base] if isinstance(base, nn.Module) else list(_base_models(model)) or [model]
    return [stack for base in bases for stack in _stacks(base)]


def _base_models(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost models of transformers inside of a module, without their heads."""
    for child in module.children():
        base = getattr(child, "base_model", None)
        if isinstance(base, nn.Module):
            yield base
        else:
            yield from _base_models(child)


def _stacks(module: nn.Module) -> Iterator[nn.ModuleList]:
    """Yield the outermost ModuleLists of modules that contain, but are not, Linear layers."""
    for child in module.children():
        if isinstance(child, nn.ModuleList) and _is_stack(child):
            yield child
        else:
            yield from _stacks(child)


def _is_stack(modules: nn.ModuleList) -> bool:
    return len(modules) > 0 and all(
        not is_linear(block) and any(map(is_linear, block.modules())) for block in modules
    )


def find_block_weights(model: nn.Module, stacks: Iterable[nn.Module]) -> dict[str, nn.Parameter]:
    """Return the weights of two or more dimensions that the blocks alone hold, by name."""
    in_blocks = {id(module) for stack in stacks for module in stack.modules()}
    others = [module for module in model.modules() if id(module) not in in_blocks]
    outside = {id(p) for module in others for p in module.parameters(recurse=False)}
    inside = {id(p) for stack in stacks for p in stack.parameters()} - outside
    return {n: p for n, p in model.named_parameters() if id(p) in inside and len(shape_of(p)) > 1}


def warn_of_coverage(model: nn.Module, targets: Iterable[Tensor]) -> None:
    """Warn if the blocks hold large weights that are no targets, such as experts in one tensor."""
    covered = {id(weight) for weight in targets}
    weights = find_block_weights(model, find_stacks(model))
    others = {name: weight for name, weight in weights.items() if id(weight) not in covered}
    in_blocks, num_others = (sum(map(_numel, some.values())) for some in (weights, others))
    if num_others <= MOST_UNCOVERED * in_blocks:
        return
    name, largest = max(others.items(), key=lambda pair: _numel(pair[1]))
    num_covered, total = in_blocks - num_others, sum(map(_numel, model.parameters()))
    warnings.warn(
        f"The targets are {num_covered / in_blocks:.1%} of the weights in the blocks of this "
        f"{type(model).__name__}, and {num_covered / total:.1%} of all its parameters: only "
        f"weights of Linear layers are pruned. {len(others)} of other kinds stay dense, the "
        f"largest of them '{name}' of shape {shape_of(largest)}.",
        stacklevel=4,
    )


def _numel(weight: Tensor) -> int:
    return prod(shape_of(weight))
