"""Comparing the weights in two folders, dense or packed."""

import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hf_cyclprune.packing.file import to_bytes
from hf_cyclprune.packing.model import read_model
from hf_cyclprune.packing.weights import (
    DenseWeights,
    PackedWeights,
    open_weights,
)


def verify(a: str | Path, b: str | Path) -> str | None:
    """Describe in one line how the weights in two folders, dense or packed, first differ.

    The description is None if all tensors are the same bit by bit. If a folder is packed, the
    models that `from_pretrained` loads from both are compared as well.

    Raises:
        ValueError: A folder holds no model, or a damaged one.
    """
    first, second = open_weights(a), open_weights(b)
    difference = _compare_files(first, second, a, b)
    if difference is None and PackedWeights in (type(first), type(second)):
        difference = _compare_loaded(a, b)
    return difference


def _compare_files(
    first: DenseWeights | PackedWeights,
    second: DenseWeights | PackedWeights,
    a: str | Path,
    b: str | Path,
) -> str | None:
    for name in sorted(first.names ^ second.names):
        return f"'{name}' is only in {a if name in first.names else b}"
    for name in sorted(first.names):
        x, y = first.read(name), second.read(name)
        if x.dtype != y.dtype or x.shape != y.shape:
            return f"'{name}' is {_describe(x)} in {a} and {_describe(y)} in {b}"
        difference = _first_difference(x, y)
        if difference is not None:
            return f"'{name}' differs{difference}"
    return None


def _compare_loaded(a: str | Path, b: str | Path) -> str | None:
    """Describe how the models that transformers loads differ; one at a time is in memory."""
    first, second = _sum_loaded(a), _sum_loaded(b)
    for name in sorted(first.keys() | second.keys()):
        if first.get(name) != second.get(name):
            return f"'{name}' differs in the models that from_pretrained loads from {a} and {b}"
    return None


def _sum_loaded(folder: str | Path) -> dict[str, tuple[torch.dtype, tuple[int, ...], int]]:
    """Return dtype, shape and crc32 of every tensor of the model that transformers loads."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # for tensors that neither folder has
        model = read_model(folder, may_lack_weights=True)
    return {
        name: (tensor.dtype, tuple(tensor.shape), zlib.crc32(to_bytes(tensor)))
        for name, tensor in model.state_dict().items()
    }


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}".removeprefix("torch.")


def _first_difference(x: Tensor, y: Tensor) -> str | None:
    a, b = (np.frombuffer(to_bytes(t), np.uint8).reshape(-1, t.element_size()) for t in (x, y))
    differs = np.flatnonzero((a != b).any(1))
    if not differs.size:
        return None
    first = int(differs[0])
    place = ", ".join(str(int(i)) for i in np.unravel_index(first, tuple(x.shape)))
    values = f"{x.reshape(-1)[first].item()!r} and {y.reshape(-1)[first].item()!r}"
    return f" in {differs.size} elements, first at [{place}]: {values}"
