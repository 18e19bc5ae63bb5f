"""How a verb of the command is made: a function with its command-line arguments above it.

The name of the function, without the underscore, is the verb's; its docstring is the help text.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

Argument = tuple[str, dict[str, Any]]
Verb = Callable[..., None]

VERBS: dict[Verb, Sequence[Argument]] = {}
"""Every verb, and its arguments."""


def verb(*arguments: Argument) -> Callable[[Verb], Verb]:
    """Register a function as a verb with these arguments."""

    def register(run: Verb) -> Verb:
        VERBS[run] = arguments
        return run

    return register


def argument(name: str, **options: Any) -> Argument:
    """Return an argument, with options of argparse."""
    return name, options


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Explain an import error where packages of an extra are missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(
            f'`hf-cyclprune {name}` needs the packages of the "{name}" extra, but '
            f"'{error.name}' is not installed. Run `pip install \"hf_cyclprune[{name}]\"`."
        ) from error
