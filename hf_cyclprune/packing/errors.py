"""The errors of packing, and the one that every reader of packed files raises."""

from collections.abc import Iterator
from contextlib import contextmanager


class PackedError(ValueError):
    """A packed file is damaged, belongs to another model or has a newer format."""


class NothingToPackError(ValueError):
    """Packing would shorten no weight of a model."""


def check(is_right: bool, message: str) -> None:
    """Raise a PackedError with this message unless `is_right`."""
    if not is_right:
        raise PackedError(message)


@contextmanager
def as_packed_error(problem: str, *faults: type[Exception], what: str = "file") -> Iterator[None]:
    """Turn each of these exceptions into a PackedError: the problem, the reason and the remedy."""
    try:
        yield
    except faults as error:
        raise PackedError(f"{problem}: {error}. Download the {what} again.") from error
