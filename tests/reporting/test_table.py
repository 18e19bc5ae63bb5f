import re

import pytest
import rich

from hf_cyclprune.reporting.cycles import CycleReport
from hf_cyclprune.reporting.report import SparsityReport
from hf_cyclprune.reporting.table import print_table, to_text
from hf_cyclprune.reporting.weights import WeightReport

KINDS = ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")
CYCLES = (
    CycleReport(1, 375, 0.8, metrics={"eval_loss": 0.25, "eval_accuracy": 0.8512}),
    CycleReport(2, 12345, 0.8, 376, 0.031, 0.0, 0.124),
)


@pytest.fixture
def report():
    """Large counts, as of a real model; one of two layers is 2:4."""
    weights = tuple(
        WeightReport(f"layer.{i}.{kind}", i, kind, (3072, 1024), 1234567 + i, ("2:4",) if i else ())
        for i in range(2)
        for kind in KINDS
    )
    return SparsityReport(weights, CYCLES, 0.5)


@pytest.fixture
def terminal(monkeypatch, capsys):
    """What `print_table` shows on a terminal of so many columns."""

    def show(report, columns):
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.delenv("NO_COLOR", raising=False)
        print_table(report)
        return capsys.readouterr().out

    return show


def without_colour(text):
    return re.sub(r"\x1b\[[\d;]*m", "", text)


def numbers(text):
    return sorted(re.findall(r"\d[\d.,]*%?", text))


def test_every_part_of_the_report_is_a_line_that_can_be_found(report):
    lines = to_text(report).splitlines()
    assert lines[:3] == [
        "sparsity 39.2458%: 9,876,540 zeros in 25,165,824 target weights of 8 matrices",
        "not at the target of 50.00%",
        "n:m satisfied by all: none",
    ]
    for line in (
        "attention                 12,582,912  4,938,270    39.25%  -",
        "  attention.self.query     6,291,456  2,469,135    39.25%  -",
        "feed-forward              12,582,912  4,938,270    39.25%  -",
        "  output.dense             6,291,456  2,469,135    39.25%  -",
        "layer 0  12,582,912  4,938,268    39.25%  -",
        "layer 1  12,582,912  4,938,272    39.25%  2:4",
        "    1        375    80.00%    0.8512                  -                 -            -",
        "    2     12,345    80.00%         -              3.10%             0.00%       12.40%",
    ):
        assert line in lines


def test_the_losses_are_shown_where_nothing_else_was_measured(report):
    cycle = CycleReport(1, 375, 0.8, metrics={"eval_a_loss": 0.25, "eval_b_loss": 0.5})
    text = to_text(SparsityReport(report.weights, (cycle,)))
    assert text.splitlines()[-1].split()[3:5] == ["0.2500", "0.5000"]
    assert text.splitlines()[-2].split()[4:6] == ["a_loss", "b_loss"]


@pytest.mark.parametrize(
    ("name", "value"), [("COLUMNS", "20"), ("FORCE_COLOR", "1"), ("TERM", "dumb"), ("NO_COLOR", "")]
)
def test_the_text_does_not_depend_on_the_terminal(report, monkeypatch, name, value):
    before = to_text(report)
    monkeypatch.setenv(name, value)
    assert to_text(report) == before == str(report)
    assert "\x1b" not in before
    assert not any(line.endswith(" ") for line in before.splitlines())


def test_a_pipe_gets_the_text_unwrapped(report, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    print_table(report)
    assert capsys.readouterr().out == f"{report}\n"


@pytest.mark.parametrize("columns", [10, 40, 60, 80, 200])
def test_a_terminal_of_any_width_shows_every_number_in_full(report, terminal, columns):
    shown = terminal(report, columns)
    assert "\x1b[1" in shown, "in colour"
    lines = without_colour(shown).splitlines()
    assert numbers("\n".join(lines)) == numbers(to_text(report))
    if columns >= 80:
        assert max(map(len, lines)) <= columns


def test_rich_prints_the_same_words(report, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    rich.print(report)
    printed = without_colour(capsys.readouterr().out).splitlines()
    assert [line.rstrip() for line in printed] == str(report).splitlines()


def test_names_are_shown_literally(report):
    weight = WeightReport("a", 0, "ffn[bold]", (2, 2), 1, ())
    cycle = CycleReport(1, 10, 0.5, metrics={"eval_[red]": 0.5})
    text = to_text(SparsityReport((weight,), (cycle,)))
    assert "ffn[bold]" in text
    assert "[red]" in text


def test_a_matrix_outside_of_the_blocks_is_in_no_part_of_one(report):
    weight = WeightReport("pooler", None, "bert.attention_pooler.dense", (2, 2), 1, ())
    lines = to_text(SparsityReport((weight,))).splitlines()
    assert any(line.startswith("other ") for line in lines)
