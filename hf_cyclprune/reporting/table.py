"""The report as a table: in colour on a terminal, plain text elsewhere, every number in full."""

import io
from collections.abc import Container, Sequence
from typing import Literal

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from hf_cyclprune.reporting.cycles import CycleReport
from hf_cyclprune.reporting.numbers import count, percent
from hf_cyclprune.reporting.rows import Rows, count_row, cycle_rows, kind_rows, layer_rows
from hf_cyclprune.reporting.weights import WeightGroup

_UNLIMITED = 10_000  # columns: no line of a pipe is wrapped
_LONGEST_WORD = 14  # longer words may be broken, unless they are numbers
_LEFT = ("matrix", "layer", "n:m")  # columns of text; those of numbers are right-justified


def make_table(
    weights: WeightGroup,
    cycles: Sequence[CycleReport],
    missed_target: float | None,
    parameters: tuple[int | None, int | None] = (None, None),
) -> RenderableType:
    """Return summary, matrices by kind, layers and cycles; `rich.print` shows it.

    Args:
        weights: those of the targets.
        cycles: those of the run.
        missed_target: the sparsity that the weights should have but do not; None if they do.
        parameters: how many of all parameters of the model are zero, and how many there are.
    """
    parts: list[RenderableType] = [_summary(weights, missed_target, *parameters)]
    parts += ["", _kinds(weights), "", _table(layer_rows(weights))]
    if cycles:
        parts += ["", _table(cycle_rows(cycles))]
    return Group(*parts)


def to_text(table: RenderableType) -> str:
    """Return a table, or a report, as text without colour and as wide as it needs."""
    console = Console(
        file=io.StringIO(),
        width=_UNLIMITED,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,
        legacy_windows=False,
    )
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def print_table(table: RenderableType) -> None:
    """Print a table, or a report: in colour and fitted to a terminal, or as text elsewhere."""
    console = Console()
    if console.is_terminal:
        console.print(table, crop=False)  # better too wide than a digit less
    else:
        print(to_text(table))


def _summary(
    weights: WeightGroup, missed_target: float | None, zeros: int | None, total: int | None
) -> Text:
    style = "bold green" if missed_target is None else "bold yellow"
    text = Text.assemble(
        (f"sparsity {percent(weights.sparsity, 4)}", style),
        f": {count(weights.num_zeros)} zeros in {count(weights.num_weights)} target weights of "
        f"{count(len(weights.weights))} matrices",
    )
    if zeros is not None and total:
        text.append(f"\n{percent(zeros / total)} of all {count(total)} parameters are zero")
    if missed_target is not None:
        text.append(f"\nnot at the target of {percent(missed_target)}", style)
    text.append("\nn:m satisfied by all: ")
    text.append(", ".join(weights.patterns) or "none", "green" if weights.patterns else "")
    errors = weights.mean_output_errors
    if errors is not None:
        text.append(
            "\nrelative error of a layer's output on the calibration data, mean over the matrices: "
            f"{percent(errors[0])} masked, {percent(errors[1])} after compensation"
        )
    return text


def _kinds(weights: WeightGroup) -> Table:
    """Return the kinds of matrices, indented below the part of the block that they are in."""
    parts = weights.grouped(lambda w: w.part)
    rows = []
    for part, members in parts.items():
        rows.append(count_row("matrix", part, members))
        rows += [{**row, "matrix": f"  {row['matrix']}"} for row in kind_rows(members)]
    return _table(rows, heads=parts)


def _table(rows: Rows, heads: Container[str | None] = ()) -> Table:
    """Return a table without lines, which would hinder grep; the rows of `heads` are bold.

    Where there is little room, words are broken and numbers are not.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold cyan")
    for name in rows[0]:
        words = " ".join([name, *(row[name] or "-" for row in rows)]).split()
        least = max(len(w) for w in words if w[0].isdigit() or len(w) <= _LONGEST_WORD)
        side: Literal["left", "right"] = "left" if name in _LEFT else "right"
        table.add_column(Text(name), justify=side, min_width=least, overflow="fold")
    for row in rows:
        style = "bold" if row.get("matrix") in heads else ""
        table.add_row(*(_cell(name, text, style) for name, text in row.items()))
    return table


def _cell(column: str, text: str | None, style: str) -> Text:
    if text is None:
        return Text("-", "dim")
    return Text(text, "green" if column == "n:m" else style)
