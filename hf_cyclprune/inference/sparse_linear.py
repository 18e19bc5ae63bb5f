"""A Linear layer on a CPU that holds, and multiplies with, its kept weights only."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from hf_cyclprune.inference.blocked import BlockedWeight
from hf_cyclprune.inference.frozen import FrozenLinear
from hf_cyclprune.inference.threads import TILE, Task, run_all, split_work, take_memory

_MAX_TASKS = 64


class SparseLinear(FrozenLinear):
    """A Linear layer with the zeros of its weight left out; it computes in float32.

    It differs from a Linear layer in one way: a zero times infinity or NaN is zero.

    Example:
        >>> linear = nn.Linear(3, 2)
        >>> _ = linear.weight.data.copy_(torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]))
        >>> SparseLinear(linear).blocked.values.tolist()
        [2.0]

    Args:
        values_dtype: in which the kept weights are stored, rounded if need be; by default that of
            the layer.
    """

    def __init__(self, linear: nn.Linear, values_dtype: torch.dtype | None = None) -> None:
        super().__init__(linear)
        self.blocked = held = BlockedWeight.from_dense(linear.weight, values_dtype)
        self._num_kept = held.num_kept_of_rows()
        self._known_tasks: dict[tuple[int, int], list[Task]] = {}
        bias = torch.zeros(self.out_features) if self.bias is None else self.bias.float()
        self._operands = (held.values, held.positions, held.starts, bias.numpy())

    def to_dense(self) -> Tensor:
        return self.blocked.to_dense().to(self.dtype)

    def multiply(self, x: Tensor) -> Tensor:
        """Return the outputs for a matrix with one token in each row."""
        tokens = x.detach().float().contiguous()
        num_tokens = tokens.shape[0]
        out = torch.empty(num_tokens, self.out_features)
        if out.numel():
            self._fill(tokens.view(-1).numpy(), out.view(-1).numpy(), num_tokens)
        return out.to(x.dtype)

    def _fill(self, x: Any, out: Any, num_tokens: int) -> None:
        multiply_tokens = load_kernel()
        jobs = []
        for i, (tokens, rows) in enumerate(self._tasks(num_tokens, torch.get_num_threads())):
            x_tile = take_memory(f"x{i}", self.in_features * TILE)
            y_tile = take_memory(f"y{i}", (rows[1] - rows[0]) * TILE)
            args = (x, out, tokens, rows, self._operands, x_tile, y_tile)
            jobs.append(partial(multiply_tokens, *args))
        run_all(jobs)

    def _tasks(self, num_tokens: int, num_threads: int) -> list[Task]:
        """Return `split_work` of this weight, from memory if it was asked before."""
        key = num_tokens, num_threads
        tasks = self._known_tasks.get(key)
        if tasks is None:
            if len(self._known_tasks) >= _MAX_TASKS:
                self._known_tasks.clear()
            tasks = split_work(num_tokens, self._num_kept, num_threads)
            self._known_tasks[key] = tasks
        return tasks


@lru_cache
def load_kernel() -> Callable[..., None]:
    """Return the kernel, which numba compiles.

    Raises:
        ImportError: numba is not installed.
    """
    try:
        from hf_cyclprune.inference.kernel import multiply_tokens
    except ModuleNotFoundError as error:
        raise ImportError(
            f"To run sparse layers on a CPU, '{error.name}' must be installed. Run "
            '`pip install "hf_cyclprune[inference]"`.'
        ) from error
    return multiply_tokens
