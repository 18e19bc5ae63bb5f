"""Checks of the values that users give.

Every error names the argument, its rule, the value that was given, and what to write instead.
"""

import difflib
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import TypeGuard


def check_sparsity(value: object) -> None:
    """Raise a ValueError unless `value` is a number in [0, 1)."""
    if _is_number(value) and 0 <= value < 1:
        return
    hint = "Pass for example 0.9."
    if _is_number(value) and 1 < value < 100:
        hint = f"Write {value / 100:g} for {value:g} %."
    raise ValueError(f"sparsity must be a fraction in [0, 1); got {value!r}. {hint}")


def check_fraction(argument: str, value: object) -> None:
    """Raise a ValueError unless `value` is a number in [0, 1]."""
    if not _is_number(value) or not 0 <= value <= 1:
        raise ValueError(
            f"{argument} must be in [0, 1]; got {value!r}. Pass a fraction such as 0.5."
        )


def check_decay(argument: str, value: object) -> None:
    """Raise a ValueError unless `value` is a number in [0, 1)."""
    if not _is_number(value) or not 0 <= value < 1:
        raise ValueError(f"{argument} must be in [0, 1); got {value!r}. Pass for example 0.99.")


def check_positive(argument: str, value: object) -> None:
    """Raise a ValueError unless `value` is a finite number > 0."""
    if not _is_number(value) or not 0 < value < math.inf:
        raise ValueError(f"{argument} must be a number > 0; got {value!r}. Pass for example 2.0.")


def check_not_negative(argument: str, value: object) -> None:
    """Raise a ValueError unless `value` is a finite number >= 0."""
    if not _is_number(value) or not 0 <= value < math.inf:
        raise ValueError(f"{argument} must be a number >= 0; got {value!r}. Pass for example 1e-4.")


def check_count(argument: str, value: object) -> None:
    """Raise a ValueError unless `value` is an integer >= 1."""
    if not _is_integer(value) or value < 1:
        raise ValueError(f"{argument} must be an integer >= 1; got {value!r}. Pass for example 4.")


def check_integer(argument: str, value: object) -> None:
    """Raise a ValueError unless `value` is an integer."""
    if not _is_integer(value):
        raise ValueError(f"{argument} must be an integer; got {value!r}. Pass for example 0.")


def check_flag(argument: str, value: object) -> None:
    """Raise a ValueError unless `value` is a bool."""
    if not isinstance(value, bool):
        raise ValueError(f"{argument} must be True or False; got {value!r}. Pass one of the two.")


def check_known(argument: str, value: object, known: Collection[str]) -> None:
    """Raise a ValueError that suggests the nearest name unless `value` is in `known`."""
    if not isinstance(value, str) or value not in known:
        near = nearest_name(str(value), known)
        hint = f"Did you mean '{near}'?" if near else "Choose one of them."
        raise ValueError(f"{argument} must be one of {', '.join(known)}; got {value!r}. {hint}")


def check_instance(argument: str, value: object, cls: type, example: str) -> None:
    """Raise a ValueError that shows how to write an instance unless `value` is one of `cls`."""
    if isinstance(value, cls):
        return
    if isinstance(value, Mapping) and value:
        example = ", ".join(f"{name}={item!r}" for name, item in value.items())
    raise ValueError(
        f"{argument} must be a {cls.__name__}; got {value!r}. Write {cls.__name__}({example})."
    )


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """Return the name that was probably meant, or None if none is close.

    >>> nearest_name("sparsty", ["pattern", "sparsity"])
    'sparsity'
    """
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def check_expressions(argument: str, values: object) -> None:
    """Raise a ValueError unless `values` is None or a list of regular expressions."""
    if values is None:
        return
    if isinstance(values, str) or not (
        isinstance(values, Sequence) and all(isinstance(value, str) for value in values)
    ):
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


def reason_of(error: BaseException) -> str:
    """Return what an error of another library says, in one line and without a full stop.

    A line that ends in a colon is followed by what it announces.

    >>> reason_of(ValueError("No such model. \\n See the documentation"))
    'No such model'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    shown = lines[:2] if lines and lines[0].endswith(":") else lines[:1]
    return " ".join(shown).rstrip(".: ") or type(error).__name__


def use_json_values_(instance: object) -> None:
    """Put Python's numbers and lists in the place of numpy's and of tuples: JSON has no others."""
    for name, value in list(vars(instance).items()):
        plain = list(value) if isinstance(value, tuple) else python_number(value)
        if plain is not value:
            object.__setattr__(instance, name, plain)  # it may be frozen


def python_number(value: object) -> object:
    """Return the int or float that equals a number of another type; other values as they are."""
    if isinstance(value, int) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool)  # numpy's are registered


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)
