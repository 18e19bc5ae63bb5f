"""Putting layers that use their zeros in the place of a model's Linear layers."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from hf_cyclprune.checks import check_count, reason_of
from hf_cyclprune.inference.cost import Cost, measure_cpu, measure_gpu
from hf_cyclprune.inference.frozen import FrozenLinear
from hf_cyclprune.inference.semi_structured import SemiStructuredLinear, find_obstacle
from hf_cyclprune.inference.sparse_linear import SparseLinear, load_kernel

_NUM_TOKENS = {"cpu": 128, "cuda": 8192}
_MARGIN = 0.9
"""A sparse layer must take at most this share of the dense layer's time."""


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
    model: nn.Module, *, num_tokens: int | None = None, measure: bool = True
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

    Raises:
        ValueError: The model is on another kind of device.
        ImportError: The model is on a CPU, and numba is not installed.
    """
    if num_tokens is not None:
        check_count("num_tokens", num_tokens)
    kind = _kind_of_device(model)
    if kind == "cpu":
        load_kernel()
    model.eval()
    report = Acceleration()
    num_owners = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    replace = _replace_on_cpu if kind == "cpu" else _replace_on_gpu
    size = (num_tokens or _NUM_TOKENS[kind]) if measure else None
    for name, linear in list(_linears(model)):
        found = _obstacle(linear, num_owners) or replace(linear, size)
        if isinstance(found, str):
            report.dense[name] = found
        else:
            report.sparse.append(name)
            _put_(model, linear, found)
    return report


def _kind_of_device(model: nn.Module) -> str:
    kinds = {parameter.device.type for parameter in model.parameters()} or {"cpu"}
    if len(kinds) > 1 or not kinds <= _NUM_TOKENS.keys():
        raise ValueError(
            f"model must be on a CPU or a CUDA GPU; got {', '.join(sorted(kinds))}. Move all of it "
            "to one of the two first."
        )
    return kinds.pop()


def _linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in model.named_modules():
        if type(module) is nn.Linear:  # a subclass may mean anything
            yield name, module


def _obstacle(linear: nn.Linear, num_owners: Counter[int]) -> str | None:
    if num_owners[id(linear.weight)] > 1:
        return "it shares its weight with another layer"
    if linear._forward_hooks or linear._forward_pre_hooks:
        return "it has hooks"
    if not linear.weight.is_floating_point() or bool((linear.weight != 0).all()):
        return "it has no zeros"
    return None


def _replace_on_cpu(linear: nn.Linear, num_tokens: int | None) -> FrozenLinear | str:
    if num_tokens is not None:
        shape, threads = linear.weight.shape, torch.get_num_threads()
        cost = measure_cpu(*shape, num_tokens, threads, linear.weight.dtype)
        if not _is_faster(cost, int(linear.weight.count_nonzero())):
            return f"with {num_tokens} tokens it is not slower dense"
    return SparseLinear(linear)


def _replace_on_gpu(linear: nn.Linear, num_tokens: int | None) -> FrozenLinear | str:
    weight = linear.weight.detach()
    obstacle = find_obstacle(weight)
    if obstacle is not None:
        return obstacle
    try:
        if num_tokens is not None:
            cost = measure_gpu(*weight.shape, num_tokens, weight.device, weight.dtype)
            if not _is_faster(cost, 0):
                return f"with {num_tokens} tokens it is not slower dense"
        return SemiStructuredLinear(linear)
    except (RuntimeError, NotImplementedError) as error:
        return f"torch cannot: {reason_of(error)}"


def _is_faster(cost: Cost, num_kept: int) -> bool:
    return cost.sparse(num_kept) < _MARGIN * cost.dense


def _put_(model: nn.Module, linear: nn.Linear, layer: FrozenLinear) -> None:
    """Put a layer wherever the model holds this one."""
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            if child is linear:
                setattr(module, name, layer)
