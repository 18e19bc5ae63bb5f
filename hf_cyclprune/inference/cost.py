"""How long layers take, dense and sparse, measured on the machine at hand."""

import time
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import nn

from hf_cyclprune.inference.semi_structured import SemiStructuredLinear
from hf_cyclprune.inference.sparse_linear import SparseLinear

_REPEATS = 7
_DENSITIES = (0.02, 0.2)
"""Shares of kept weights that are measured; the time between and beyond lies on a line."""


class Cost(NamedTuple):
    """Seconds that a layer of one shape takes for one batch."""

    dense: float
    fixed: float
    """Of a sparse layer without a kept weight."""
    per_kept: float
    """More for each kept weight."""

    def sparse(self, num_kept: int) -> float:
        """Return the seconds that a layer with so many kept weights takes."""
        return self.fixed + self.per_kept * num_kept


@lru_cache
def measure_cpu(
    out_features: int,
    in_features: int,
    num_tokens: int,
    num_threads: int,
    dtype: torch.dtype,
    values_dtype: torch.dtype,
) -> Cost:
    """Measure random layers of one shape; once in a process for each.

    Args:
        num_threads: those that torch uses now.
        dtype: of the layers and their inputs.
        values_dtype: of the kept weights of the sparse ones.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(out_features, in_features, generator=generator)
    share = torch.rand(out_features, in_features, generator=generator)
    x = torch.randn(num_tokens, in_features, generator=generator).to(dtype)
    linear = _new_linear(out_features, in_features, torch.device("cpu"), dtype)
    linear.weight.data.copy_(weight)
    dense = _time(lambda: linear(x))
    times, numbers = [], []
    for density in _DENSITIES:
        linear.weight.data.copy_(weight * (share < density))
        layer = SparseLinear(linear, values_dtype)
        numbers.append(layer.blocked.num_kept)
        times.append(_time(lambda layer=layer: layer(x)))  # type: ignore[misc]
    per_kept = max(0.0, (times[1] - times[0]) / max(1, numbers[1] - numbers[0]))
    return Cost(dense, max(0.0, times[0] - per_kept * numbers[0]), per_kept)


@lru_cache
def measure_gpu(
    out_features: int, in_features: int, num_tokens: int, device: torch.device, dtype: torch.dtype
) -> Cost:
    """Measure a random 2:4 layer of one shape; once in a process for each.

    Raises:
        RuntimeError: torch or the GPU cannot multiply with a 2:4 weight of this shape.
    """
    generator = torch.Generator(device).manual_seed(0)
    linear = _new_linear(out_features, in_features, device, dtype)
    linear.weight.data.normal_(generator=generator)
    linear.weight.data.view(out_features, -1, 4)[:, :, 2:] = 0.0
    x = torch.empty(num_tokens, in_features, device=device, dtype=dtype)
    x.normal_(generator=generator)
    layer = SemiStructuredLinear(linear)
    return Cost(_time(lambda: linear(x), device), _time(lambda: layer(x), device), 0.0)


def _new_linear(
    out_features: int, in_features: int, device: torch.device, dtype: torch.dtype
) -> nn.Linear:
    """Build a layer whose bias is zero, without a random number of the user's."""
    linear = nn.Linear(in_features, out_features, dtype=dtype, device="meta")
    linear = linear.to_empty(device=device)
    linear.bias.data.zero_()
    return linear


@torch.inference_mode()
def _time(run: Callable[[], object], device: torch.device | None = None) -> float:
    """Return the shortest of several times, in seconds: others on the machine only lengthen it."""
    times = []
    for _ in range(1 + _REPEATS):
        start = time.perf_counter()
        run()
        if device is not None:
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])  # the first one compiles
