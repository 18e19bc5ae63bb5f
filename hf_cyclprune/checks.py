"""One clear sentence for a value out of its range: argument, rule, value, remedy."""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any


def check_sparsity(value: Any) -> None:
    """Raise a ValueError unless `value` is a number in [0, 1)."""
    if _is_number(value) and 0 <= value < 1:
        return
    hint = "Pass for example 0.9."
    if _is_number(value) and 1 < value < 100:
        hint = f"Write {value / 100:g} for {value:g} %."
    raise ValueError(f"sparsity must be a fraction in [0, 1); got {value!r}. {hint}")


def check_fraction(argument: str, value: Any) -> None:
    """Raise a ValueError unless `value` is a number in [0, 1]."""
    if not _is_number(value) or not 0 <= value <= 1:
        raise ValueError(
            f"{argument} must be in [0, 1]; got {value!r}. Pass a fraction such as 0.5."
        )


def check_count(argument: str, value: Any) -> None:
    """Raise a ValueError unless `value` is an integer of at least 1."""
    if not _is_integer(value) or value < 1:
        raise ValueError(f"{argument} must be an integer of at least 1; got {value!r}. Pass one.")


def check_integer(argument: str, value: Any) -> None:
    """Raise a ValueError unless `value` is an integer."""
    if not _is_integer(value):
        raise ValueError(f"{argument} must be an integer; got {value!r}. Pass for example 0.")


def check_flag(argument: str, value: Any) -> None:
    """Raise a ValueError unless `value` is a bool."""
    if not isinstance(value, bool):
        raise ValueError(f"{argument} must be True or False; got {value!r}. Pass one of the two.")


def check_known(argument: str, value: Any, known: Iterable[str]) -> None:
    """Raise a ValueError with the nearest known name unless `value` is one."""
    if isinstance(value, str) and value in known:
        return
    near = difflib.get_close_matches(str(value), known, n=1)
    hint = f"Did you mean '{near[0]}'?" if near else "Choose one of them."
    raise ValueError(f"{argument} must be one of {', '.join(known)}; got {value!r}. {hint}")


def check_expressions(argument: str, values: Any) -> None:
    """Raise a ValueError unless this is None or a list of regular expressions."""
    if values is None:
        return
    is_list = isinstance(values, Sequence) and not isinstance(values, str)
    if not is_list or not all(isinstance(value, str) for value in values):
        raise ValueError(
            f"{argument} must be a list of regular expressions; got {values!r}. "
            f"Write {argument}=['query', 'key'], for example."
        )
    for value in values:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(
                f"{argument} must hold regular expressions; got {value!r}, where {error}. "
                "Escape special characters with a backslash."
            ) from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
