"""The kept weights of a matrix, in the order in which the kernel reads them.

The columns are cut into blocks of 256, since the inputs of 256 columns and 32 tokens fit into the
fastest cache (32 KiB). Block after block, and in it row after row, are stored

    values      float32, the kept weights
    positions   uint8, their columns inside the block
    starts      int32, where the weights of each block and row begin, and the end of the last

A kept weight takes 5 bytes, and each row 4 bytes for every 256 columns.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 256
"""Columns of a block: as many as a byte can tell apart."""


@dataclass(frozen=True)
class BlockedWeight:
    """The kept weights of a matrix with these two dimensions."""

    out_features: int
    in_features: int
    values: Tensor
    positions: Tensor
    starts: Tensor

    @classmethod
    def from_dense(cls, weight: Tensor) -> "BlockedWeight":
        """Take the weights that are not zero from a matrix on the CPU; one block at a time.

        >>> weight = torch.tensor([[0.0, 5.0, 0.0], [0.0, 0.0, 0.0], [6.0, 0.0, 7.0]])
        >>> blocked = BlockedWeight.from_dense(weight)
        >>> blocked.values.tolist(), blocked.positions.tolist(), blocked.starts.tolist()
        ([5.0, 6.0, 7.0], [1, 0, 2], [0, 1, 1, 3])
        """
        out_features, in_features = weight.shape
        values, positions, counts = [], [], []
        for block in torch.split(weight.detach(), BLOCK, 1) if in_features else ():
            is_kept = block != 0
            values.append(block[is_kept].float())
            positions.append(is_kept.nonzero()[:, 1].to(torch.uint8))
            counts.append(is_kept.sum(1))
        ends = torch.cat([torch.zeros(1, dtype=torch.int64), *counts]).cumsum(0)
        return cls(
            out_features,
            in_features,
            torch.cat([torch.empty(0), *values]),
            torch.cat([torch.empty(0, dtype=torch.uint8), *positions]),
            ends.to(torch.int32),
        )

    def to_dense(self) -> Tensor:
        """Return the matrix with its zeros, in float32."""
        dense = torch.zeros(self.out_features, self.in_features)
        counts = self.starts.diff().long()
        number = torch.arange(counts.numel()).repeat_interleave(counts)  # of the block and the row
        rows, blocks = number % self.out_features, number // self.out_features
        dense[rows, blocks * BLOCK + self.positions.long()] = self.values
        return dense

    def num_kept_of_rows(self) -> Tensor:
        """Return how many weights each row keeps.  # (out_features,)"""
        return self.starts.diff().view(-1, self.out_features).sum(0)

    @property
    def num_kept(self) -> int:
        """How many weights are stored."""
        return self.values.numel()

    @property
    def num_bytes(self) -> int:
        """The memory that they take."""
        return sum(t.nbytes for t in (self.values, self.positions, self.starts))
