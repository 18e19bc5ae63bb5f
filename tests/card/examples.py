"""Cards to test with, and what a reader sees of a card."""

import dataclasses
import re
from collections import Counter

import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from hf_cyclprune.card.card import Card
from hf_cyclprune.config import PruningConfig
from hf_cyclprune.reporting.cycles import CycleReport
from hf_cyclprune.reporting.report import SparsityReport
from hf_cyclprune.reporting.run import RunRecord
from hf_cyclprune.reporting.weights import WeightReport
from tests.hub.cards import find_errors

PAPER = "2202.01290"


def make_report(num_zeros=80, patterns=(), target=0.8, cycles=(), kinds=("attention.query", "ffn")):
    """Report two layers of two matrices of 10 x 10 and 20 x 10 weights."""
    weights = tuple(
        WeightReport(f"layer.{layer}.{kind}", layer, kind, shape, factor * num_zeros, patterns)
        for layer in (0, 1)
        for kind, shape, factor in ((kinds[0], (10, 10), 1), (kinds[1], (20, 10), 2))
    )
    return SparsityReport(weights, tuple(cycles), target)


CYCLES = (
    CycleReport(1, 500, 0.8, metrics={"eval_accuracy": 0.81, "eval_runtime": 3.0}),
    CycleReport(2, 1000, 0.79, 502, 0.25, 0.0123, 0.031, {"eval_accuracy": 0.83}),
)
RECORD = RunRecord(
    step=1000,
    weights_step=1000,
    total_steps=1000,
    restarts_lr=True,
    metrics={"eval_accuracy": 0.84, "eval_loss": 0.4321, "eval_runtime": 9.0, "eval_samples": 100},
    base_model="lab/base",
    card={
        "language": "en",
        "tasks": "text-classification",
        "dataset_tags": "nyu-mll/glue",
        "dataset_args": "sst2",
        "dataset": "GLUE SST2",
        "dataset_metadata": {"config": "sst2", "split": "validation"},
        "tags": ["pruned", "mine"],
    },
    dense_metrics={"eval_accuracy": 0.9, "eval_runtime": 1.0, "train_loss": 0.1},
    hyperparameters={"learning_rate": 3e-4, "seed": 7, "optimizer": "adamw_torch, betas=(0.9, 1)"},
    versions={"hf_cyclprune": "0.1.0", "torch": "2.9"},
    command="hf-cyclprune glue --task_name sst2 \\\n  --sparsity 0.8",
)
FULL = Card(
    model_name="sst2-80",
    report=make_report(cycles=CYCLES),
    config=PruningConfig("cyclical", sparsity=0.8, num_cycles=2),
    record=RECORD,
    repo_id="lab/sst2-80",
    model_class="BertForSequenceClassification",
    has_tokenizer=True,
    num_parameters=1000,
    dense_bytes=4_321_000,
    packed_bytes=1_234_567,
    packed_folder="sparse",
    pictures={"schedule": "a/schedule.png", "density": "density.png", "recovery": "recovery.png"},
    license="apache-2.0",
)
BARE = Card(
    "bare", make_report(), PruningConfig(sparsity=0.8), RunRecord(1000, 1000, 1000), pictures={}
)


def change(card=FULL, record=None, **changes):
    if record is not None:
        changes["record"] = dataclasses.replace(card.record, **record)
    return dataclasses.replace(card, **changes)


OPTIONS = RECORD.card


def metadata_of(text):
    return yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))


def parse(text):
    """Return the tokens of the body, as a Markdown renderer with tables sees them."""
    body = ModelCard(text).text
    return MarkdownIt("commonmark").enable("table").parse(body)


def plain(token):
    """Return the text that a reader sees of an inline token."""
    return "".join(t.content or " " * (t.type == "softbreak") for t in token.children)


def tables_of(text):
    """Return each table as a list of rows of cells, the header first."""
    tables, is_cell = [], False
    for token in parse(text):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type in ("th_open", "td_open"):
            is_cell = True
        elif token.type == "inline" and is_cell:
            tables[-1][-1].append(plain(token))
            is_cell = False
    return {table[0][0]: table for table in tables}


def headings_of(text):
    tokens = parse(text)
    return [plain(tokens[i + 1]) for i, t in enumerate(tokens) if t.type == "heading_open"]


def words_of(text):
    """Return the prose, the lists and the cells of the tables on one line, without code."""
    return " ".join(" ".join(plain(t) for t in parse(text) if t.type == "inline").split())


def code_of(text):
    return [token.content for token in parse(text) if token.type == "fence"]


def without_code(text):
    return re.sub(r"(?ms)^(`{3,})[^\n]*\n.*?^\1$", "code", text)


def check_structure(text):
    """Check the metadata, that no table is broken, no section empty, and nothing left open."""
    assert find_errors(text) == []
    assert metadata_of(text) == ModelCard(text).data.to_dict()
    tokens = parse(text)
    for before, after in zip(tokens, [*tokens[1:], None], strict=True):
        if before.type == "heading_close":
            is_empty = after is None or after.type == "heading_open"
            assert not is_empty, "a section stands empty"
        if before.type in ("html_block", "html_inline"):
            assert re.match(r"<!-- hf_cyclprune|</?details>|<summary>", before.content)
    for table in tables_of(text).values():
        assert len(table) > 1
        assert len(table[0]) > 1
        assert all(table[0]), "a column without a name"
    rows = [line for line in without_code(text).splitlines() if line.startswith("|")]
    cells = Counter(len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows)
    widths = Counter()
    for table in tables_of(text).values():
        widths[len(table[0]) + 1] += len(table) + 1  # and the line below the header
    assert cells == widths, "a row has more or fewer cells than its header"


HOSTILE = [
    *("a|b", "|", "\\|", "`x`", "```", "~~~", "---", "a\n---\nb", "\n\n# h\n", "'\"", "# h", "#"),
    *("{{ 1 }}", "{% if %}", "<b>", "<!-- x", "-->", "[x](y)", "![x](y)", "*a*", "_a_", "a_b"),
    *("- x", "1. x", "> q", "$$x$$", "\\", "&lt;", "&", "no", "~", "@x", "a: b", "é😀", "!!x"),
    *("</details>", "\x00\x1b[0m", "\u2028x", "\ud800", "https://x.y", "a\r\nb", "    x", "%"),
]
