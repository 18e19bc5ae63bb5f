"""The parts of one product that threads work on, and the memory of each thread."""

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise, product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TILE = 48
"""Tokens that are worked on at a time, at most."""
_PORTION = 32
"""Tokens that are not divided among threads: fewer at a time take longer for each."""
_LINE = 64  # bytes: a vector that crosses the border of two cache lines is loaded twice
_MIN_WORK = 200_000
"""Products of kept weights and tokens below which to wake a thread takes longer than it saves."""

_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_is_forked = False
_memory = threading.local()
Span = tuple[int, int]
Task = tuple[Span, Span]
"""Tokens and rows: first, and last + 1."""
Tile = tuple[NDArray[np.float32], int]
"""An array, and where in it the memory begins that may be used."""


def split_work(num_tokens: int, num_kept: Tensor, num_threads: int) -> list[Task]:
    """Return equal parts of a product, one for each thread that is worth waking.

    Tokens are divided before rows, since each part copies the inputs of its tokens; rows so that
    each part has equally many kept weights.

    Args:
        num_kept: how many weights each row keeps.

    >>> import torch
    >>> split_work(128, torch.tensor([10_000, 0, 5_000, 5_000]), 2)
    [((0, 64), (0, 4)), ((64, 128), (0, 4))]
    >>> split_work(32, torch.tensor([10_000, 0, 5_000, 5_000]), 2)
    [((0, 32), (0, 1)), ((0, 32), (1, 4))]
    """
    total = int(num_kept.sum())
    num_threads = max(1, min(num_threads, num_tokens * total // _MIN_WORK))
    num_portions = -(-num_tokens // _PORTION)
    options = range(min(num_threads, num_portions), 0, -1)
    divisor = min(options, key=lambda n: -(-num_portions // n) / (num_threads // n))
    size = -(-num_portions // divisor) * _PORTION
    tokens = [*range(0, num_tokens, size), num_tokens]
    rows = _split_rows(num_kept, total, num_threads // divisor)
    return list(product(pairwise(tokens), pairwise(rows)))


def _split_rows(num_kept: Tensor, total: int, num_parts: int) -> list[int]:
    ends = num_kept.cumsum(0)
    targets = [total * part / num_parts for part in range(1, num_parts)]
    inner = {int((ends < target).sum()) + 1 for target in targets}
    return sorted({0, *inner, num_kept.numel()})


def take_memory(kind: str, size: int) -> Tile:
    """Return memory for `size` numbers, which is kept for the next time this thread asks."""
    tile: Tile | None = getattr(_memory, kind, None)
    if tile is None or tile[0].size < size + _LINE:
        array = np.zeros(size + _LINE, np.float32)
        tile = array, (-array.ctypes.data % _LINE) // array.itemsize
        setattr(_memory, kind, tile)
    return tile


def run_all(jobs: Sequence[Callable[[], None]]) -> None:
    """Run all jobs, which release the interpreter's lock while they work, in as many threads.

    They run in the threads of torch's OpenMP: these wait for more work in a loop, and would take
    the processors away from other threads. Where there is none they run in threads of our own, and
    in a forked process, where the threads of its parent are missing, one after another.
    """
    if len(jobs) == 1 or _is_forked:
        for job in jobs:
            job()
    elif (openmp := _find_openmp()) is not None:
        _run_in_openmp(openmp, jobs)
    else:
        futures = [_pool(len(jobs) - 1).submit(job) for job in jobs[1:]]
        jobs[0]()
        for future in futures:
            future.result()


def _run_in_openmp(openmp: ctypes.CDLL, jobs: Sequence[Callable[[], None]]) -> None:
    left, errors = iter(jobs), []

    def work(_: object) -> None:
        try:
            for job in left:  # there may be fewer threads than jobs
                job()
        except BaseException as error:  # it would be lost in a callback
            errors.append(error)

    openmp.GOMP_parallel(_CALLBACK(work), None, ctypes.c_uint(len(jobs)), ctypes.c_uint(0))
    if errors:
        raise errors[0]


@lru_cache
def _find_openmp() -> ctypes.CDLL | None:
    """Return GNU's OpenMP library if torch has loaded it."""
    try:
        library = ctypes.CDLL("libgomp.so.1", mode=getattr(os, "RTLD_NOLOAD", 0))
    except OSError:
        return None
    is_torchs = "parallel backend: OpenMP" in torch.__config__.parallel_info()
    return library if is_torchs and hasattr(library, "GOMP_parallel") else None


@lru_cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, thread_name_prefix="hf_cyclprune")


def _after_fork() -> None:
    global _is_forked
    _is_forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
