"""Putting layers that use their zeros in the place of a model's Linear layers."""

import ctypes
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch
from torch import nn

from hf_cyclprune.checks import check_count, reason_of
from hf_cyclprune.inference.blocked import VALUES_DTYPES
from hf_cyclprune.inference.cost import Cost, measure_cpu, measure_gpu
from hf_cyclprune.inference.frozen import FrozenLinear
from hf_cyclprune.inference.semi_structured import SemiStructuredLinear, find_obstacle
from hf_cyclprune.inference.sparse_linear import SparseLinear, load_kernel
from hf_cyclprune.pruning.blocks import is_linear

_NUM_TOKENS = {"cpu": 128, "cuda": 8192}
_MARGIN = 0.9
"""A sparse layer must take at most this share of the dense layer's time."""
_NOT_FASTER = "for {} tokens it would save less than a tenth of its time"

_Replacer = Callable[[nn.Linear], FrozenLinear | str]
"""Returns what replaces a layer, or why nothing does."""


@dataclass(frozen=True)
class Acceleration:
    """What became of the Linear layers of a model.

    Args:
        sparse: the names of those that were replaced.
        dense: name -> why this one stayed as it was.
    """

    sparse: list[str] = field(default_factory=list)
    dense: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        head = f"{len(self.sparse)} Linear layers are sparse now, {len(self.dense)} stayed dense."
        reasons: dict[str, list[str]] = {}
        for name, reason in self.dense.items():
            reasons.setdefault(reason, []).append(name)
        lines = [
            f"  {reason}: {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            for reason, names in reasons.items()
        ]
        return "\n".join([head, *lines])


def accelerate_(
    model: nn.Module,
    *,
    num_tokens: int | None = None,
    measure: bool = True,
    values_dtype: torch.dtype | None = None,
) -> Acceleration:
    """Replace the pruned Linear layers of a model in place by faster ones, for inference only.

    On a CPU the layers hold and multiply with their kept weights alone; on a CUDA GPU those with
    2:4 weights in float16 or bfloat16 use its sparse tensor cores. A layer is replaced where that
    is faster, which is measured once for every shape. The model is put into eval mode; it cannot
    be trained, moved or given a state_dict any more, but saved as an ordinary dense model.

    Args:
        num_tokens: sentences times their length in a typical batch, for which the layers are
            measured; by default 128 on a CPU and 8192 on a GPU.
        measure: False replaces every layer that has zeros and can be replaced.
        values_dtype: on a CPU, in which the kept weights are stored; by default as they are.
            torch.bfloat16 or torch.float16 rounds those of a float32 model to 2 bytes each, which
            changes its outputs a little; sums are in float32 always.

    Raises:
        ValueError: The model is on another kind of device, or values_dtype cannot be used.
        ImportError: The model is on a CPU, and numba is not installed.
    """
    if num_tokens is not None:
        check_count("num_tokens", num_tokens)
    kind = _kind_of_device(model)
    size = (num_tokens or _NUM_TOKENS[kind]) if measure else None
    replace = _new_replacer(kind, size, values_dtype)
    model.eval()
    num_owners = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    names = list(_names_of_linears(model))  # no list of layers: it would keep them alive
    reasons = {name: _replace_(model, name, num_owners, replace) for name in names}
    _return_memory()
    dense = {name: reason for name, reason in reasons.items() if reason is not None}
    return Acceleration([name for name in names if name not in dense], dense)


def _kind_of_device(model: nn.Module) -> str:
    kinds = {parameter.device.type for parameter in model.parameters()} or {"cpu"}
    if len(kinds) > 1 or not kinds <= _NUM_TOKENS.keys():
        raise ValueError(
            f"model must be on a CPU or a CUDA GPU; got {', '.join(sorted(kinds))}. Move all of it "
            "to one of the two first."
        )
    return kinds.pop()


def _new_replacer(kind: str, num_tokens: int | None, values_dtype: torch.dtype | None) -> _Replacer:
    if values_dtype is not None and (kind != "cpu" or values_dtype not in VALUES_DTYPES):
        known = ", ".join(map(str, VALUES_DTYPES))
        raise ValueError(
            f"values_dtype must be one of {known}, for a model on a CPU; got {values_dtype} for "
            f"one on '{kind}'. Leave it out to store the weights as they are."
        )
    if kind == "cuda":
        return partial(_replace_on_gpu, num_tokens=num_tokens)
    load_kernel()
    return partial(_replace_on_cpu, num_tokens=num_tokens, values_dtype=values_dtype)


def _names_of_linears(model: nn.Module) -> Iterator[str]:
    return (name for name, module in model.named_modules() if is_linear(module))


def _replace_(
    model: nn.Module, name: str, num_owners: Counter[int], replace: _Replacer
) -> str | None:
    """Replace the layer of this name, or return why it stays."""
    layer = model.get_submodule(name)
    if layer is model:
        return "it is the whole model, not a layer of one"
    found = _obstacle(layer, num_owners) or replace(_as_linear(layer))
    if isinstance(found, str):
        return found
    found.is_transposed = not isinstance(layer, nn.Linear)
    _put_(model, layer, found)
    return None


def _as_linear(layer: nn.Module) -> nn.Linear:
    """Return the Linear layer that computes what the Conv1D of GPT-2 does, or the layer itself."""
    if isinstance(layer, nn.Linear):
        return layer
    weight, bias = cast("nn.Parameter", layer.weight), cast("nn.Parameter", layer.bias)
    linear = nn.Linear(weight.shape[0], weight.shape[1], device="meta")
    linear.weight, linear.bias = nn.Parameter(weight.detach().t(), requires_grad=False), bias
    return linear


def _obstacle(layer: nn.Module, num_owners: Counter[int]) -> str | None:
    if isinstance(layer, nn.Linear) and type(layer) is not nn.Linear:
        return f"what a {type(layer).__name__} computes is not known"
    weight = cast("nn.Parameter", layer.weight)
    if num_owners[id(weight)] > 1:
        return "it shares its weight with another layer"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "it has hooks"
    if not weight.is_floating_point():
        return "its weights are integers"
    if bool((weight != 0).all()):
        return "it has no zeros"
    return None


def _replace_on_cpu(
    linear: nn.Linear, num_tokens: int | None, values_dtype: torch.dtype | None
) -> FrozenLinear | str:
    dtype = linear.weight.dtype
    if dtype not in VALUES_DTYPES:
        return f"its weights are {str(dtype).removeprefix('torch.')}"
    if num_tokens is not None:
        shape, threads = linear.weight.shape, torch.get_num_threads()
        cost = measure_cpu(*shape, num_tokens, threads, dtype, values_dtype or dtype)
        if not _is_faster(cost, int(linear.weight.count_nonzero())):
            return _NOT_FASTER.format(num_tokens)
    return SparseLinear(linear, values_dtype)


def _replace_on_gpu(linear: nn.Linear, num_tokens: int | None) -> FrozenLinear | str:
    weight = linear.weight.detach()
    obstacle = find_obstacle(weight)
    if obstacle is not None:
        return obstacle
    try:
        if num_tokens is not None:
            cost = measure_gpu(*weight.shape, num_tokens, weight.device, weight.dtype)
            if not _is_faster(cost, 0):
                return _NOT_FASTER.format(num_tokens)
        return SemiStructuredLinear(linear)
    except (RuntimeError, NotImplementedError) as error:
        return f"torch cannot: {reason_of(error)}"


def _is_faster(cost: Cost, num_kept: int) -> bool:
    return cost.sparse(num_kept) < _MARGIN * cost.dense


def _put_(model: nn.Module, old: nn.Module, new: FrozenLinear) -> None:
    """Put a layer wherever the model holds another one."""
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            if child is old:
                setattr(module, name, new)


def _return_memory() -> None:
    """Ask glibc for the freed weights: it keeps up to 32 MB for itself wherever it can."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)
