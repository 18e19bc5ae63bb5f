"""Values -> text that breaks neither YAML nor Markdown, whoever wrote it."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any
from urllib.parse import quote

_NO_METRIC = re.compile(
    r"^(train|predict)_|(^|_)(runtime|per_second|time|samples|epoch|step|cycle|sparsity|flos)(_mm)?$"
)

Rows = list[dict[str, str | None]]


def table(rows: Rows) -> str:
    """Markdown; a column without a name, or in which nothing is known, is left out.

    >>> print(table([{"a": "x|y", "b": None}]))
    | a |
    |---|
    | x\\|y |
    """
    named = filter(one_line, rows[0])
    names = [name for name in named if any(row[name] is not None for row in rows)]
    lines = [names, *([row[name] or "-" for name in names] for row in rows)]
    text = ["| " + " | ".join(map(escape, line)) + " |" for line in lines]
    text.insert(1, "|" + "|".join(["---"] + ["---:"] * (len(names) - 1)) + "|")
    return "\n".join(text)


def measured(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What was measured of the model's answers: no times, no counts, no nan."""
    named = {name.removeprefix("eval_"): value for name, value in metrics.items()}
    return {
        line: float(value)
        for name, value in named.items()
        if (line := one_line(name)) and not _NO_METRIC.search(line) and is_number(value)
    }


def is_number(value: Any) -> bool:
    """Whether it can stand in a card: finite, and no flag."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return math.isfinite(value)


def number(value: float | None) -> str | None:
    """With four digits; None stays None."""
    if value is None:
        return None
    is_usual = value == 0 or 1e-3 <= abs(value) < 1e6
    return f"{value:.4f}" if is_usual else f"{value:.4g}"


def percent(share: float | None) -> str | None:
    """With so many digits that only 0 is 0% and only 1 is 100%.

    >>> percent(0.8), percent(0.0), percent(0.999996)
    ('80.00%', '0.00%', '99.9996%')
    """
    if share is None:
        return None
    digits = 2
    while 0 < share < 1 and digits < 12 and float(f"{share:.{digits + 2}f}") in (0.0, 1.0):
        digits += 1
    return f"{share:.{digits}%}"


def ratio(share: float) -> str:
    """A share that somebody chose, in percent."""
    return f"{100 * share:g}%"


def said(values: Mapping[str, Any]) -> dict[str, str]:
    """Names and values as lines, without those that say nothing."""
    lines = {one_line(name): one_line(value) for name, value in values.items() if value is not None}
    return {name: value for name, value in lines.items() if value not in ("", "nan", "inf", "-inf")}


def texts(value: Any) -> list[str]:
    """None, a value or several, as a list of lines."""
    several = value if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    return [line for item in several if item is not None and (line := one_line(item))]


def one_line(value: Any) -> str:
    """Printable text on one line."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return " ".join(text.split())


def escape(value: Any) -> str:
    """Markdown that shows the value as it is, in a table too.

    >>> print(escape("a|b *c* d_e <f>"))
    a\\|b \\*c\\* d_e \\<f\\>
    """
    return re.sub(r"[\\`*{}\[\]<>|#~$&]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", one_line(value))


def literal(value: str) -> str:
    """Python code."""
    return json.dumps(one_line(value), ensure_ascii=False)


def url(path: str) -> str:
    """A path as the target of a link."""
    return quote(path.replace("\\", "/"), safe="/", errors="replace")


def fenced(text: str, language: str) -> str:
    """A block of code whose fence is longer than any in the text."""
    lines = [line for line in text.splitlines() if line.strip()]
    code = "\n".join("".join(c if c.isprintable() else " " for c in line) for line in lines)
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", code)), 0)
    return f"{fence}{language}\n{code}\n{fence}"
