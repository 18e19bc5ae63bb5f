"""Write values as text that breaks neither YAML nor Markdown, whoever wrote them."""

import json
import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote

from hf_cyclprune.reporting.rows import Rows


def one_line(value: object) -> str:
    """Return the value as printable text on one line."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return " ".join(text.split())


def texts(value: object) -> list[str]:
    """Return a value, or several, as a list of lines; None and blank texts are left out."""
    several = value if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    return [line for item in several if item is not None and (line := one_line(item))]


def first_text(*values: object) -> str | None:
    """Return the first text in these values, each as for `texts`; None if there is none."""
    return next((text for value in values for text in texts(value)), None)


def known_texts(values: Mapping[str, object]) -> dict[str, str]:
    """Return names and values as lines, without those that are empty or not finite."""
    lines = {one_line(name): one_line(value) for name, value in values.items() if value is not None}
    return {name: value for name, value in lines.items() if value not in ("", "nan", "inf", "-inf")}


def escape(value: object) -> str:
    """Write Markdown that shows the value as it is, in a table too.

    >>> print(escape("a|b *c* d_e <f>"))
    a\\|b \\*c\\* d_e \\<f\\>
    """
    return re.sub(r"[\\`*{}\[\]<>|#~$&]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", one_line(value))


def literal(value: str) -> str:
    """Write a text as Python code."""
    return json.dumps(one_line(value), ensure_ascii=False)


def url(path: str) -> str:
    """Write a path as the target of a link."""
    return quote(path.replace("\\", "/"), safe="/", errors="replace")


def fenced(text: str, language: str) -> str:
    """Write a block of code whose fence is longer than any fence in the text."""
    lines = [line for line in text.splitlines() if line.strip()]
    code = "\n".join("".join(c if c.isprintable() else " " for c in line) for line in lines)
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", code)), 0)
    return f"{fence}{language}\n{code}\n{fence}"


def table(rows: Rows) -> str:
    """Write a table without the columns that have no name, or in which nothing is known.

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
