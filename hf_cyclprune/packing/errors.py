"""What is raised for a packed checkpoint that cannot be read."""


class PackedError(ValueError):
    """A packed checkpoint that is damaged, of another model or of a newer format."""


def check(is_right: bool, message: str) -> None:
    """Raise a PackedError with the message unless it is right."""
    if not is_right:
        raise PackedError(message)
