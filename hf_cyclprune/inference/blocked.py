"""The kept weights of a matrix, in the order in which the kernel reads them.

The columns are cut into blocks of 256, since the inputs of 256 columns and 48 tokens (48 KiB) stay
in the fastest caches. Block after block, and in it row after row, are stored

    values      the kept weights: float32, the bits of bfloat16 as int16 or of float16 as uint16
    positions   uint8, their columns inside the block
    starts      int32, where the weights of each block and row begin, and the end of the last

A kept weight takes 5 bytes, or 3, and each row 4 bytes for every 256 columns.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 256
"""Columns of a block: as many as a byte can tell apart."""

_BITS = {torch.float32: torch.float32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
"""dtype of the values -> one of the same size that numpy knows."""
VALUES_DTYPES = tuple(_BITS)
"""The dtypes in which values can be stored."""


@dataclass(frozen=True)
class BlockedWeight:
    """The kept weights of a matrix with these two dimensions."""

    out_features: int
    in_features: int
    values: NDArray[Any]
    positions: NDArray[np.uint8]
    starts: NDArray[np.int32]

    @classmethod
    def from_dense(cls, weight: Tensor, dtype: torch.dtype | None = None) -> "BlockedWeight":
        """Take the weights that are not zero from a matrix on the CPU; one block at a time.

        Args:
            dtype: of the values, to which they are rounded; by default that of the weight. It is
                float32 where the values cannot be stored in it, or are too large for it.

        >>> weight = torch.tensor([[0.0, 5.0, 0.0], [0.0, 0.0, 0.0], [6.0, 0.0, 7.0]])
        >>> blocked = BlockedWeight.from_dense(weight)
        >>> blocked.values.tolist(), blocked.positions.tolist(), blocked.starts.tolist()
        ([5.0, 6.0, 7.0], [1, 0, 2], [0, 1, 1, 3])
        """
        out_features, in_features = weight.shape
        dtype = dtype or weight.dtype
        dtype = dtype if dtype in _BITS else torch.float32
        values, positions, counts = [], [], []
        for block in torch.split(weight.detach(), BLOCK, 1) if in_features else ():
            is_kept = block != 0
            values.append(block[is_kept].to(dtype))
            positions.append(is_kept.nonzero()[:, 1].to(torch.uint8))
            counts.append(is_kept.sum(1))
        ends = torch.cat([torch.zeros(1, dtype=torch.int64), *counts]).cumsum(0)
        joined = torch.cat([torch.empty(0, dtype=dtype), *values])
        if dtype != torch.float32 and not bool(joined.isfinite().all()):
            return cls.from_dense(weight, torch.float32)
        bits = joined.view(_BITS[dtype]).numpy()
        return cls(
            out_features,
            in_features,
            bits.view(np.uint16) if dtype == torch.float16 else bits,
            torch.cat([torch.empty(0, dtype=torch.uint8), *positions]).numpy(),
            ends.to(torch.int32).numpy(),
        )

    def to_dense(self) -> Tensor:
        """Return the matrix with its zeros, in the dtype of the values."""
        dense = torch.zeros(self.out_features, self.in_features, dtype=self.dtype)
        bits = self.values.view(np.int16) if self.dtype == torch.float16 else self.values
        values = torch.from_numpy(bits).view(self.dtype)
        counts = torch.from_numpy(np.diff(self.starts)).long()
        number = torch.arange(counts.numel()).repeat_interleave(counts)  # of the block and the row
        rows, blocks = number % self.out_features, number // self.out_features
        dense[rows, blocks * BLOCK + torch.from_numpy(self.positions).long()] = values
        return dense

    def num_kept_of_rows(self) -> Tensor:
        """Return how many weights each row keeps.  # (out_features,)"""
        return torch.from_numpy(np.diff(self.starts)).view(-1, self.out_features).sum(0)

    @property
    def dtype(self) -> torch.dtype:
        """In which the values are stored."""
        stored = {"int16": torch.bfloat16, "uint16": torch.float16}
        return stored.get(self.values.dtype.name, torch.float32)

    @property
    def num_kept(self) -> int:
        """How many weights are stored."""
        return self.values.size

    @property
    def num_bytes(self) -> int:
        """The memory that they take."""
        return self.values.nbytes + self.positions.nbytes + self.starts.nbytes
