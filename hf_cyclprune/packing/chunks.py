"""Long arrays a part at a time, which stays in the cache."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 17  # elements

Bytes = NDArray[np.uint8]


def parts(size: int) -> Iterator[slice]:
    """Slices that cover `size` elements in order."""
    return (slice(start, min(start + _CHUNK, size)) for start in range(0, size, _CHUNK))


def find(is_it: NDArray[np.bool_]) -> NDArray[np.intp]:
    """`np.flatnonzero`, but also fast where some hundredths are True.

    numpy's loop for more than a tenth is up to three times faster than the one for less.
    """
    num_found = int(np.count_nonzero(is_it))
    if not 0.015 < num_found / is_it.size <= 0.1:
        return np.flatnonzero(is_it)
    more = np.ones(is_it.size // 8, np.bool_)
    return np.flatnonzero(np.concatenate((is_it, more)))[:num_found]
