import dataclasses
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_cyclprune.card.rendering import is_own_card, make_card
from hf_cyclprune.config import PruningConfig
from tests.card.examples import (
    CYCLES,
    FULL,
    HOSTILE,
    OPTIONS,
    change,
    check_structure,
    code_of,
    headings_of,
    make_report,
    metadata_of,
    tables_of,
    words_of,
)


def put_everywhere(text):
    """The full card with one text wherever a text of others may be."""
    names = ["language", "license", "tasks", "dataset_args", "dataset", "tags", "finetuned_from"]
    options = {**OPTIONS, **dict.fromkeys(names, text), "dataset_metadata": [{"split": text}]}
    record = {
        "card": options,
        "base_model": text,
        "hyperparameters": {text: text, "seed": text},
        "versions": {"hf_cyclprune": text, text: "1"},
        "command": text,
        "metrics": {"eval_accuracy": 0.5, f"eval_{text}": 0.1},
    }
    cycles = [dataclasses.replace(cycle, metrics={f"eval_{text}": 0.1}) for cycle in CYCLES]
    return change(
        model_name=text,
        repo_id=text,
        packed_folder=text,
        report=make_report(cycles=cycles, kinds=(text, "ffn")),
        config=PruningConfig(sparsity=0.8, num_cycles=2, ignore=[re.escape(text)]),
        record=record,
        license=text,
        pictures=dict.fromkeys(FULL.pictures, text),
    )


def on_one_line(text):
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def check_hostile(text):
    card = make_card(put_everywhere(text))
    card.encode()
    check_structure(card)
    headings = headings_of(card)
    assert headings[0] == (on_one_line(text) or "Pruned model")
    assert headings[1:] == headings_of(make_card(FULL))[1:]
    assert list(tables_of(card)) == list(tables_of(make_card(FULL)))
    assert tables_of(card)["matrix"][1][0] == on_one_line(text) or "-"
    assert metadata_of(card)["library_name"] == "transformers"
    compile("".join(code_of(card)[:2]), "card", "exec")
    assert is_own_card(card)
    return card


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_text_of_others_breaks_neither_metadata_nor_tables(text):
    card = check_hostile(text)
    line = on_one_line(text)
    if line:
        assert f"seed: {line}" in words_of(card)
        assert metadata_of(card)["tags"][-1] == line
        assert [on_one_line(line) for line in code_of(card)[3].splitlines()] == [
            on_one_line(line) for line in text.splitlines() if on_one_line(line)
        ]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(alphabet="ab\n\r |`~-#*_[]()<>{}%$&\\'\":!.0", max_size=12) | st.text(max_size=8))
def test_no_text_at_all_breaks_them(text):
    check_hostile(text)
