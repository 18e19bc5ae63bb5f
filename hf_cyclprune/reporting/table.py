"""The report as a table: in colour on a terminal, plain text elsewhere, every number in full."""

import io
import re
from collections.abc import Sequence
from typing import Literal

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from hf_cyclprune.reporting.cycles import CycleReport, format_metric
from hf_cyclprune.reporting.report import SparsityReport

_UNLIMITED = 10_000  # columns: no line of a pipe is wrapped
_LONGEST_WORD = 14  # longer ones may be broken, unless they are numbers
_COUNTS = ("sparsity", "zeros", "weights", "n:m")
_FEED_FORWARD = re.compile(r"ffn|mlp|feed|intermediate|^output|fc\d|lin(ear)?\d", re.IGNORECASE)


def make_table(report: SparsityReport) -> RenderableType:
    """Summary, matrices by kind, layers, cycles; `rich.print` shows it."""
    parts: list[RenderableType] = [_summary(report), "", _kinds(report), "", _layers(report)]
    if report.cycles:
        parts += ["", _cycles(report.cycles)]
    return Group(*parts)


def to_text(report: SparsityReport) -> str:
    """The table without colour and as wide as it needs; the same everywhere."""
    console = Console(
        file=io.StringIO(),
        width=_UNLIMITED,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,
        legacy_windows=False,
    )
    with console.capture() as capture:
        console.print(make_table(report))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def print_table(report: SparsityReport) -> None:
    """On a terminal in colour and at its width, but never at the cost of a digit; else as text."""
    console = Console()
    if not console.is_terminal:
        print(to_text(report))
        return
    console.print(make_table(report), crop=False)


def group_of(layer: int | None, kind: str) -> str:
    """The part of a block that a matrix belongs to.

    >>> group_of(0, "attention.output.dense"), group_of(0, "output.dense")
    ('attention', 'feed-forward')
    """
    if layer is None:
        return "other"
    if "att" in kind.lower():
        return "attention"
    return "feed-forward" if _FEED_FORWARD.search(kind) else "other"


def _summary(report: SparsityReport) -> Text:
    text = Text.assemble(
        (f"sparsity {report.sparsity:.4%}", "bold green" if report.is_at_target else "bold yellow"),
        f": {report.num_zeros:,} zeros in {report.num_weights:,} target weights of "
        f"{len(report.weights)} matrices",
    )
    if not report.is_at_target:
        text.append(f"\nnot at the target of {report.target_sparsity:.2%}", "bold yellow")
    text.append("\nn:m satisfied by all: ")
    return text.append(", ".join(report.patterns) or "none", "green" if report.patterns else "dim")


def _kinds(report: SparsityReport) -> Table:
    """By kind of matrix, indented below the part of the block."""
    rows = []
    for part, members in report.grouped(lambda w: group_of(w.layer, w.kind)).items():
        rows.append(_counts(part, members, "bold"))
        rows += [_counts(f"  {kind}", group) for kind, group in members.by_kind().items()]
    return _table(("matrix", *_COUNTS), rows, "<>>><")


def _layers(report: SparsityReport) -> Table:
    rows = [_counts(layer, group) for layer, group in report.by_layer().items()]
    return _table(("layer", *_COUNTS), rows, "<>>><")


def _counts(name: str, group: SparsityReport, style: str = "") -> list[Text]:
    numbers = (f"{group.sparsity:.2%}", f"{group.num_zeros:,}", f"{group.num_weights:,}")
    patterns = Text(", ".join(group.patterns), "green") if group.patterns else _none()
    return [Text(name, style), *(Text(number, style) for number in numbers), patterns]


def _cycles(cycles: Sequence[CycleReport]) -> Table:
    """One row each; the evaluation's values last, since their number varies."""
    names = list(dict.fromkeys(name for cycle in cycles for name in cycle.main_metrics))
    headers = ("cycle", "end step", "sparsity", "recovered at edge", ".. at end", "mask change")
    rows = []
    for c in cycles:
        shares = (c.sparsity, c.recovered_share_at_edge, c.recovered_share_at_end, c.mask_change)
        numbers = [Text(str(c.cycle)), Text(str(c.end_step)), *map(_percent, shares)]
        rows.append(numbers + [_metric(c.main_metrics.get(name)) for name in names])
    return _table((*headers, *names), rows, ">" * (len(headers) + len(names)))


def _table(headers: Sequence[str], rows: Sequence[Sequence[Text]], sides: str) -> Table:
    """No lines, which would be in the way of grep; where there is no room only words are broken."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold cyan")
    for header, side, *cells in zip(headers, sides, *rows, strict=True):
        words = [word for text in (header, *map(str, cells)) for word in text.split()]
        least = max(len(w) for w in words if w[0].isdigit() or len(w) <= _LONGEST_WORD)
        justify: Literal["left", "right"] = "left" if side == "<" else "right"
        table.add_column(Text(header), justify=justify, min_width=least, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _percent(share: float | None) -> Text:
    return _none() if share is None else Text(f"{share:.2%}")


def _metric(value: float | None) -> Text:
    return _none() if value is None else Text(format_metric(value), "bold")


def _none() -> Text:
    return Text("-", "dim")
