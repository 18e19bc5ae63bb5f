"""The section "Speed" of a card: what was measured, where, and with which command."""

from dataclasses import replace

import pytest

from hf_cyclprune.card.rendering import make_card
from hf_cyclprune.inference.timings import Timing
from tests.card.examples import BARE, change, check_structure, code_of, headings_of, tables_of
from tests.card.examples import words_of as words_of_card
from tests.inference.times import BENCH, DENSE

INT8 = Timing("ONNX Runtime int8", 1234.5, 1000.0, 2000.0, None)


def test_the_table_has_every_time_and_the_words_say_where_it_was_measured():
    text = make_card(change(bench=replace(BENCH, timings=[*BENCH.timings, INT8])))
    check_structure(text)
    assert tables_of(text)["runtime"] == [
        ["runtime", "median ms", "quartiles", "MB of weights", "times as fast as dense"],
        ["dense", "8.00", "7.50 to 9.00", "438.0", "1.00"],
        ["sparse", "2.00", "1.50 to 2.50", "142.0", "4.00"],
        ["ONNX Runtime int8", "1,234.50", "1,000.00 to 2,000.00", "-", "0.01"],
    ]
    words = words_of_card(text)
    assert (
        "Measured on the CPU Some CPU (threads: 2) for a batch of 1 x 128 tokens, in float32 "
        "except for int8: the median and the quartiles of several runs, with hf_cyclprune 0.1.0, "
        "torch 2.13.0. Other machines, batches and lengths give other numbers."
    ) in words
    assert "hf_cyclprune.inference: 72 Linear layers are sparse now, 2 stayed dense." in words
    command = "hf-cyclprune bench lab/sst2-80 --batch_size 1 --seq_length 128 --threads 2\n"
    assert command in code_of(text)


def test_a_card_without_times_has_no_such_section():
    assert "Speed" not in headings_of(make_card(change()))
    assert "Speed" in headings_of(make_card(change(BARE, bench=BENCH)))


def test_a_model_that_is_faster_dense_says_so():
    bench = replace(BENCH, timings=[DENSE], missing={"sparse": "all dense"}, versions={})
    words = words_of_card(make_card(change(BARE, bench=bench)))
    assert "found no layer that would be faster on its kept weights alone." in words
    assert "The row" not in words
    assert "in float32: the median and the quartiles of several runs. Other machines" in words


@pytest.mark.parametrize(
    "evil", ["a|b\n\n# Mine", "``` x\n<script>", "[x](http://y) $1$", "{{ x }}"]
)
def test_no_name_in_the_file_breaks_the_page(evil):
    timings = [replace(DENSE, name=evil), INT8]
    bench = replace(BENCH, processor=evil, layers=evil, versions={evil: evil}, timings=timings)
    text = make_card(change(bench=replace(bench, missing={evil: evil}, model=evil)))
    check_structure(text)
    assert headings_of(text) == headings_of(make_card(change(bench=BENCH)))
    shown = " ".join(evil.split())
    assert tables_of(text)["runtime"][1][0] == shown
    assert f"Measured on the CPU {shown} (threads: 2)" in words_of_card(text)
