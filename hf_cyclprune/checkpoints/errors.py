"""What is raised for a packed checkpoint that cannot be read."""


class PackedError(ValueError):
    """A packed checkpoint that is damaged, of another model or of a newer format."""
