"""The error that every reader of packed files raises."""


class PackedError(ValueError):
    """A packed file is damaged, belongs to another model or has a newer format."""


def check(is_right: bool, message: str) -> None:
    """Raise a PackedError with this message unless `is_right`."""
    if not is_right:
        raise PackedError(message)
