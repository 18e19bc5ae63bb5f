"""Model -> {name: weight} to prune: the Linear layers inside the transformer's blocks.

So BERT-base has 72 target weights, and embeddings, LayerNorms, biases, pooler and head stay dense.
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn

from hf_cyclprune.checks import check_expressions
from hf_cyclprune.engines.shards import Shards, plain_name, shape_of
from hf_cyclprune.pruning.adapters import check_no_adapters
from hf_cyclprune.pruning.blocks import find_block_weights, find_stacks, is_linear, warn_of_coverage


def find_targets(
    model: nn.Module,
    targets: Sequence[str] | None = None,
    ignore: Sequence[str] | None = None,
    *,
    keep_frozen: bool = False,
) -> dict[str, nn.Parameter]:
    """Return the target weights by state_dict name, in the model's order, a shared one once.

    By default these are the weights of the Linear layers in the base model's blocks, except those
    that are tied to a weight outside of them; the Conv1D layers of GPT-2 count as Linear. Frozen
    weights are left out with a warning, and another tells how much is covered if the blocks hold
    large weights of other kinds.

    Args:
        targets: regular expressions, searched in the names of all Linear, Conv1D and Embedding
            weights; given, they replace the default.
        ignore: regular expressions; a weight whose name matches one is left out.
        keep_frozen: take frozen weights too, to look at them.

    Raises:
        ValueError: the model has adapters, or no blocks; an expression is invalid or matches
            nothing; or nothing is left to prune.
    """
    check_no_adapters(model)
    weights = dict(_weights(model))
    found = _in_blocks(model, weights) if targets is None else _match("targets", targets, weights)
    if targets is None and not keep_frozen:
        warn_of_coverage(model, found.values())
    if ignore is not None:
        ignored = _match("ignore", ignore, found)
        found = {name: weight for name, weight in found.items() if name not in ignored}
    if not keep_frozen:
        found = _without_frozen(found)
    if not found:
        raise ValueError(
            "targets must leave a weight to prune; got none. Every target is ignored or frozen: "
            "unfreeze one, or ignore fewer."
        )
    return found


def _without_frozen(found: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Drop the weights that no optimizer moves, with a warning."""
    frozen = [name for name, weight in found.items() if not weight.requires_grad]
    if frozen:
        warnings.warn(
            f"{len(frozen)} target weights are frozen (requires_grad=False) and will not be "
            f"pruned, the first is '{frozen[0]}'. Unfreeze them, or leave them out with ignore=.",
            stacklevel=3,
        )
    return {name: weight for name, weight in found.items() if weight.requires_grad}


def _weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield every 2-D weight of a Linear or Embedding layer once, under its first name.

    That of a Conv1D is marked by its attribute `input_dim`: see `input_last`.
    """
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        if not is_linear(module) and not isinstance(module, nn.Embedding):
            continue
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        if weight is None or len(shape_of(weight)) != 2 or not weight.is_floating_point():
            continue  # parametrized or quantized
        if id(weight) in seen:
            continue
        seen.add(id(weight))
        if is_linear(module) and not isinstance(module, nn.Linear):
            weight.input_dim = 0
        yield plain_name(f"{prefix}.weight" if prefix else "weight"), weight


def _in_blocks(model: nn.Module, weights: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    stacks = find_stacks(model)
    if not stacks:
        raise ValueError(
            "The model must contain a stack of transformer blocks with Linear layers; got "
            f"{type(model).__name__}, which has none. Name the weights to prune with "
            "targets=['<regular expression>']."
        )
    layers = [m for stack in stacks for m in stack.modules() if is_linear(m)]
    linear = {id(layer.weight) for layer in layers}
    own = {id(weight) for weight in find_block_weights(model, stacks).values()}
    return {name: weight for name, weight in weights.items() if id(weight) in linear & own}


def _match(
    argument: str, patterns: Sequence[str], weights: dict[str, nn.Parameter]
) -> dict[str, nn.Parameter]:
    """Return the weights whose names match; every expression must match one."""
    check_expressions(argument, patterns)
    matched: set[str] = set()
    for pattern in patterns:
        hits = {name for name in weights if re.search(pattern, name)}
        if not hits:
            example = next(iter(weights), "none")
            raise ValueError(
                f"{argument} must match the name of a 2-D weight; got '{pattern}', which matches "
                f"none of {len(weights)}. Names look like '{example}'."
            )
        matched |= hits
    return {name: weight for name, weight in weights.items() if name in matched}


def find_layers(model: nn.Module, targets: Iterable[str]) -> dict[str, nn.Linear]:
    """Return the Linear layer that each of these weights of the model belongs to.

    Raises:
        ValueError: one is not the `weight` of a Linear layer, but of a Conv1D, of experts or so.
    """
    layers: dict[str, nn.Linear] = {}
    named = model.named_modules()
    owners = {plain_name(f"{name}.weight").lstrip("."): module for name, module in named}
    for name in targets:
        layer = owners.get(name)
        if not isinstance(layer, nn.Linear):
            raise ValueError(
                "To look at its inputs, a target must be the weight of a Linear layer; "
                f"'{name}' is not. Leave it out with ignore=."
            )
        layers[name] = layer
    return layers


def find_sparsity(shards: Shards) -> float:
    """Return the share of zeros in all target weights together, in [0, 1]."""
    num_zeros = shards.sum({name: (shard.weight == 0).sum() for name, shard in shards.items()})
    return int(num_zeros.sum()) / sum(shard.numel for shard in shards.values())


def check_finite(shards: Shards) -> None:
    """Raise for a weight that holds NaN or infinity: its scores would mean nothing.

    Raises:
        ValueError: names the first such weight.
    """
    name = find_not_finite(shards)
    if name is not None:
        raise ValueError(
            f"The target weight '{name}' holds NaN or infinity. Load a healthy checkpoint, or "
            "leave this weight out with ignore=."
        )


def find_not_finite(shards: Shards) -> str | None:
    """Return the name of the first weight that holds NaN or infinity; None if none does."""
    is_bad = [~shard.weight.isfinite().all() for shard in shards.values()]
    answers = shards.ranks.any(torch.stack(is_bad)).tolist()
    return next((name for name, bad in zip(shards, answers, strict=True) if bad), None)
