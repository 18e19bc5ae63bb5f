"""Decoding the blobs of a packed model while it loads."""

import os
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from hf_cyclprune.packing.blob import decode
from hf_cyclprune.packing.entropy import Bytes


class Decoder:
    """Decodes blobs in threads, while transformers asks for one at a time.

    What is decoded early takes no memory beyond the model: it becomes the model's weights.
    """

    def __init__(self, blobs: dict[str, Bytes], max_size: int) -> None:
        self._max_size = max_size
        self._pool = ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1))
        self._waiting: dict[bytes, list[tuple[str, Future[Tensor]]]] = defaultdict(list)
        for name, blob in sorted(blobs.items(), key=lambda pair: -pair[1].size):
            future = self._pool.submit(decode, blob, name, None, max_size)
            self._waiting[_key(blob)].append((name, future))
        self._keys = set(self._waiting)

    def is_blob(self, tensor: Tensor) -> bool:
        """Return whether a tensor from a file is one of the blobs."""
        is_like_one = tensor.dtype == torch.uint8 and tensor.dim() == 1
        return is_like_one and _key(tensor.cpu().numpy()) in self._keys

    def take(self, blob: Bytes, name: str) -> Tensor:
        """Return the tensor in a blob, and forget it.

        Raises:
            PackedError: The blob is damaged, or larger than the model.
        """
        waiting = self._waiting[_key(blob)]
        return waiting.pop()[1].result() if waiting else decode(blob, name, None, self._max_size)

    def stop(self) -> list[str]:
        """Drop and name the tensors that nobody asked for, as a head that the model lacks."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        left = [name for waiting in self._waiting.values() for name, _ in waiting]
        self._waiting.clear()
        return left


def _key(blob: Bytes) -> bytes:
    """Return the checksum of a blob and the numbers in its header, for its name may change."""
    return blob[8:64].tobytes()
