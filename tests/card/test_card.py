import dataclasses
import json
import math
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from hf_cyclprune.card.card import is_own_card, make_card
from hf_cyclprune.card.facts import Card
from hf_cyclprune.config import PruningConfig, load_config, save_config
from hf_cyclprune.reporting.cycles import CycleReport
from hf_cyclprune.reporting.report import SparsityReport, load_report
from hf_cyclprune.reporting.run import RunRecord, load_record
from hf_cyclprune.reporting.weights import WeightReport
from tests.hub.cards import find_errors
from tests.hub.server import WRITE_TOKEN, HubServer

PAPER = "2202.01290"


def make_report(num_zeros=80, patterns=(), target=0.8, cycles=(), kinds=("attention.query", "ffn")):
    """Two layers of two matrices of 10 x 10 and 20 x 10 weights."""
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
    config=PruningConfig(sparsity=0.8, num_cycles=2),
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


def change(facts=FULL, record=None, **changes):
    if record is not None:
        changes["record"] = dataclasses.replace(facts.record, **record)
    return dataclasses.replace(facts, **changes)


def metadata_of(text):
    return yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))


def parse(text):
    """The tokens of the body, as a Markdown renderer with tables sees them."""
    body = ModelCard(text).text
    return MarkdownIt("commonmark").enable("table").parse(body)


def plain(token):
    """What a reader sees of an inline token."""
    return "".join(t.content or " " * (t.type == "softbreak") for t in token.children)


def tables_of(text):
    """Each table as a list of rows of cells, the header first."""
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
    """The prose and the lists, without tables and code, on one line."""
    return " ".join(" ".join(plain(t) for t in parse(text) if t.type == "inline").split())


def code_of(text):
    return [token.content for token in parse(text) if token.type == "fence"]


def without_code(text):
    return re.sub(r"(?ms)^(`{3,})[^\n]*\n.*?^\1$", "code", text)


def check_structure(text):
    """Metadata of texts and numbers; no broken table, no empty section, nothing left open."""
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


# The metadata


def test_the_metadata_are_what_the_hub_files_a_model_under():
    data = metadata_of(make_card(FULL))
    results = data.pop("model-index")
    assert data == {
        "language": ["en"],
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "base_model": "lab/base",
        "base_model_relation": "finetune",
        "datasets": ["nyu-mll/glue"],
        "metrics": ["accuracy"],
        "tags": [
            *("hf_cyclprune", "generated_from_trainer", "cyclical-pruning", "pruned"),
            *("unstructured", "mine"),
        ],
    }
    dataset = {"name": "GLUE SST2", "type": "nyu-mll/glue", "config": "sst2", "split": "validation"}
    accuracy = {"type": "accuracy", "value": 0.84, "name": "accuracy"}
    sparsity = {"type": "sparsity", "value": 0.8, "name": "sparsity of the target weights"}
    assert results == [
        {
            "name": "sst2-80",
            "results": [
                {
                    "task": {"type": "text-classification", "name": "Text Classification"},
                    "dataset": {**dataset, "args": "sst2"},
                    "metrics": [accuracy, sparsity],
                }
            ],
        }
    ]


def test_the_huggingface_library_reads_the_metadata_as_they_are():
    card = ModelCard(make_card(FULL))
    assert card.data.base_model == "lab/base"
    assert [result.metric_value for result in card.data.eval_results] == [0.84, 0.8]
    again = ModelCard(str(card))
    assert again.data.to_dict() == metadata_of(make_card(FULL))
    assert again.text.strip() == card.text.strip()


def test_the_hub_takes_the_cards_and_would_refuse_a_broken_one(tmp_path):
    hostile = {"record": {"card": {"tags": HOSTILE, "dataset": "a: [b", "language": "no"}}}
    cards = [FULL, BARE, change(**hostile), change(model_name="3e-5")]
    texts = [*map(make_card, cards), "---\ndatasets:\n- 3\n---\n"]
    (tmp_path / "cards.json").write_text(json.dumps(texts))
    code = """
import json
from huggingface_hub import HfApi
api = HfApi()
api.create_repo("lab/pruned")
def is_accepted(text):
    options = {"path_in_repo": "README.md", "repo_id": "lab/pruned"}
    try:
        api.upload_file(path_or_fileobj=text.encode(), **options)
    except ValueError:
        return False
    return True
print(json.dumps([is_accepted(text) for text in json.load(open("cards.json"))]))
"""
    with HubServer() as hub:
        environment = hub.environment(tmp_path, WRITE_TOKEN)
        command = [sys.executable, "-c", code]
        options = {"capture_output": True, "text": True, "check": False, "cwd": tmp_path}
        done = subprocess.run(command, env=environment, timeout=60, **options)
        assert done.returncode == 0, done.stderr
        checks = [r for r in hub.requests if r.path.startswith("/api/validate-yaml")]
        assert len(checks) == len(texts)
        assert hub.files("lab/pruned")["README.md"].decode() == texts[-2]
    assert json.loads(done.stdout.splitlines()[-1]) == [True] * len(cards) + [False]
    assert "warning" not in done.stderr.lower()


@pytest.mark.parametrize(
    "metrics",
    [
        {"eval_accuracy": np.float32(0.5), "eval_f1": np.float64(0.25)},
        {"eval_accuracy": 0.5, "eval_f1": 0.25, "eval_recall": math.nan, "eval_mse": math.inf},
        {"eval_accuracy": 0.5, "eval_f1": 0.25, "eval_precision": True, "eval_mae": [1.0]},
        {"eval_accuracy": 0.5, "eval_f1": 0.25, "eval_f1_threshold": 0.9, "eval_score": None},
    ],
)
def test_only_finite_numbers_become_results(metrics):
    text = make_card(change(record={"metrics": metrics}))
    check_structure(text)
    (result,) = metadata_of(text)["model-index"][0]["results"]
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert values == {"accuracy": 0.5, "f1": 0.25, "sparsity": 0.8}
    assert re.search(r"\b(nan|inf)\b", text) is None


def test_metrics_have_the_names_of_the_hub_and_mnli_both_sets():
    metrics = {
        "eval_pearson": 0.1,
        "eval_spearmanr": 0.2,
        "eval_matthews_correlation": 0.3,
        "eval_accuracy": 0.4,
        "eval_accuracy_mm": 0.5,
        "eval_loss_mm": 0.6,
        "eval_runtime_mm": 1.0,
        "eval_samples_per_second_mm": 2.0,
        "eval_samples_mm": 3,
    }
    text = make_card(change(record={"metrics": metrics}))
    (result,) = metadata_of(text)["model-index"][0]["results"]
    assert [(m["type"], m["value"]) for m in result["metrics"]] == [
        *(("pearsonr", 0.1), ("spearmanr", 0.2), ("matthews_correlation", 0.3)),
        *(("accuracy", 0.4), ("accuracy", 0.5), ("sparsity", 0.8)),
    ]
    assert metadata_of(text)["metrics"] == [
        *("pearsonr", "spearmanr", "matthews_correlation", "accuracy")
    ]
    assert [row[0] for row in tables_of(text)["metric"][1:]] == [
        *("pearson", "spearmanr", "matthews_correlation", "accuracy", "accuracy_mm", "loss_mm")
    ]


CARD = RECORD.card


@pytest.mark.parametrize(
    "changes",
    [
        {"record": {"metrics": {}}},
        {"record": {"metrics": {"eval_loss": 0.1}}},
        {"record": {"card": {**CARD, "dataset_tags": None}}},
        {"record": {"card": {**CARD, "dataset_tags": ["a", "b"]}}},
        {"record": {"card": {**CARD, "dataset_tags": "/data/mine"}}},
        {"record": {"card": {**CARD, "tasks": None}}, "model_class": "BertForPreTraining"},
    ],
)
def test_half_a_result_is_not_reported(changes):
    text = make_card(change(**changes))
    check_structure(text)
    assert "model-index" not in metadata_of(text)


def test_what_the_caller_said_goes_before_what_was_found():
    said = {"license": "mit", "finetuned_from": "org/other", "tasks": ["fill-mask"], "tags": "x"}
    data = metadata_of(make_card(change(record={"card": said})))
    found = [data[name] for name in ("license", "base_model", "pipeline_tag")]
    assert found == ["mit", "org/other", "fill-mask"]
    assert data["tags"][-1] == "x"


@pytest.mark.parametrize("path", ["/home/me/bert", "./bert", "../bert", "a/b/c", "a b", ""])
def test_a_base_model_that_is_no_id_on_the_hub_is_not_named(path):
    text = make_card(change(record={"base_model": path}))
    assert "base_model" not in metadata_of(text)
    assert "base_model_relation" not in metadata_of(text)
    assert path == "" or path not in text
    assert "This model was trained on GLUE SST2" in words_of(text)


@pytest.mark.parametrize("word", ["2:4", "1:100", "3e-5", "1e5", "no", "null", "0x1F", "-1", ".5"])
def test_a_word_that_looks_like_a_number_stays_a_text(word):
    facts = change(model_name=word, record={"card": {**CARD, "tags": [word], "dataset": word}})
    text = make_card(facts)
    data = metadata_of(text)
    assert data["tags"][-1] == word
    assert data["model-index"][0]["name"] == word
    assert data["model-index"][0]["results"][0]["dataset"]["name"] == word
    # as YAML 1.2 reads it too
    assert f"- '{word}'\n" in text


def test_the_pattern_is_a_tag_once_all_weights_satisfy_it():
    config = PruningConfig(pattern="2:4", num_cycles=2)
    done = change(config=config, report=make_report(50, ("2:4", "4:8"), 0.5))
    early = change(config=config, report=make_report(20, (), 0.5))
    assert "2:4" in metadata_of(make_card(done))["tags"]
    assert "4:8" not in metadata_of(make_card(done))["tags"]
    assert {"2:4", "unstructured"}.isdisjoint(metadata_of(make_card(early))["tags"])
    assert "in the pattern 2:4" in words_of(make_card(done))
    assert "Patterns that all target weights satisfy: 2:4, 4:8." in words_of(make_card(done))
    assert "2:4 (n:m" not in words_of(make_card(early))
    assert "to_sparse_semi_structured" in make_card(done)
    assert "to_sparse_semi_structured" not in make_card(early)


def test_a_model_without_zeros_is_not_called_pruned():
    card = {**CARD, "tags": None}
    tags = metadata_of(make_card(change(report=make_report(0), record={"card": card})))["tags"]
    assert {"pruned", "unstructured"}.isdisjoint(tags)


# The body


def test_every_number_of_the_tables_is_one_of_the_facts():
    text = make_card(FULL)
    check_structure(text)
    tables = tables_of(text)
    assert tables["metric"] == [
        ["metric", "dense", "pruned"],
        ["accuracy", "0.9000", "0.8400"],
        ["loss", "-", "0.4321"],
    ]
    assert tables["matrix"] == [
        ["matrix", "weights", "zeros", "sparsity"],
        ["attention.query", "200", "160", "80.00%"],
        ["ffn", "400", "320", "80.00%"],
    ]
    assert tables["layer"] == [
        ["layer", "weights", "zeros", "sparsity"],
        ["layer 0", "300", "240", "80.00%"],
        ["layer 1", "300", "240", "80.00%"],
    ]
    assert tables["cycle"] == [
        [
            *("cycle", "last step", "sparsity", "accuracy"),
            *("recovered at edge", "recovered at end", "mask change"),
        ],
        ["1", "500", "80.00%", "0.8100", "-", "-", "-"],
        ["2", "1,000", "79.00%", "0.8300", "25.00%", "1.23%", "3.10%"],
    ]
    assert tables["weights"] == [
        ["weights", "bytes", "MB"],
        ["dense", "4,321,000", "4.3"],
        ["packed", "1,234,567", "1.2"],
    ]
    assert len(tables) == 5


def test_every_number_of_the_text_is_one_of_the_facts():
    words = words_of(make_card(FULL))
    assert (
        "This model is lab/base, fine-tuned on GLUE SST2 with cyclical pruning (Srinivas et al. "
        "2022): 80.00% of its target weights are zero, without a pattern (unstructured)."
    ) in words
    assert "One run each, measured on the validation split, 100 examples." in words
    error = math.sqrt(0.84 * 0.16 / 100)
    assert f"standard error of the pruned model's accuracy is {error:.4f}" in words
    assert "Of the 600 target weights 480 are zero (80.00%)" in words
    assert "that is 48.00% of the 1,000 parameters of the whole model" in words
    assert "In each of 2 cycles sparsity climbs (cubic) to the target over the first 80%" in words
    assert "Every cycle but the first starts from 50% of the target." in words
    assert "The learning rate runs its whole schedule once in each of 2 cycles." in words
    assert "The weights are those after optimizer step 1,000 of 1,000." in words
    assert "learning_rate: 0.0003 seed: 7 optimizer: adamw_torch, betas=(0.9, 1)" in words
    assert "Versions: hf_cyclprune 0.1.0, torch 2.9." in words


def test_the_code_of_the_card_is_the_code_to_run():
    loading, packed, config, command, citation = code_of(make_card(FULL))
    assert loading == (
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
        'model = AutoModelForSequenceClassification.from_pretrained("lab/sst2-80")\n'
        'tokenizer = AutoTokenizer.from_pretrained("lab/sst2-80")\n'
    )
    assert packed.startswith("import hf_cyclprune")
    assert packed.endswith('from_pretrained("lab/sst2-80", subfolder="sparse")\n')
    assert eval(config, {"PruningConfig": PruningConfig}) == FULL.config
    assert command == RECORD.command + "\n"
    assert PAPER in citation
    compile(loading + packed, "card", "exec")


@pytest.mark.parametrize(
    ("model_class", "shown", "task"),
    [
        ("BertForTokenClassification", "AutoModelForTokenClassification", "token-classification"),
        ("RobertaForMaskedLM", "AutoModelForMaskedLM", "fill-mask"),
        ("BertModel", "BertModel", None),
        ("BertForPreTraining", "BertForPreTraining", None),
        ("MyOwnClass", None, None),
        ("import os; os", None, None),
    ],
)
def test_the_model_is_loaded_with_the_class_that_knows_its_head(model_class, shown, task):
    record = {"card": {}}
    text = make_card(change(model_class=model_class, record=record, repo_id=None))
    assert metadata_of(text).get("pipeline_tag") == task
    if shown is None:
        assert model_class not in text
        assert "`from_pretrained` of the model's class" in text
    else:
        assert f'model = {shown}.from_pretrained("path/to/sst2-80")' in text


def test_pictures_are_shown_with_words_for_who_cannot_see_them():
    inlines = [token for token in parse(make_card(FULL)) if token.type == "inline"]
    images = [child for token in inlines for child in token.children if child.type == "image"]
    assert [image.attrs["src"] for image in images] == list(FULL.pictures.values())
    assert all(len(image.content.split()) > 2 for image in images)


def test_a_share_is_rounded_to_0_or_100_only_if_it_is():
    zeros = make_report().weights[0]
    almost = dataclasses.replace(zeros, shape=(1000, 1000), num_zeros=999_999)
    assert "99.9999%" in words_of(make_card(change(report=SparsityReport((almost,)))))
    cycle = dataclasses.replace(CYCLES[1], recovered_share_at_end=1e-6)
    text = make_card(change(report=make_report(cycles=[CYCLES[0], cycle])))
    assert tables_of(text)["cycle"][2][5] == "0.0001%"
    assert "no weight that was pruned" not in words_of(text)


def test_that_nothing_recovered_is_said():
    cycle = dataclasses.replace(CYCLES[1], recovered_share_at_end=0.0)
    text = make_card(change(report=make_report(cycles=[CYCLES[0], cycle])))
    assert tables_of(text)["cycle"][2][5] == "0.00%"
    assert "In this run no weight that was pruned at the end of a cycle was kept" in words_of(text)
    assert "In this run no weight" not in words_of(make_card(FULL))


def test_a_run_that_is_not_finished_says_so_at_the_top():
    facts = change(report=make_report(61), record={"step": 700, "weights_step": 650})
    text = make_card(facts)
    check_structure(text)
    assert words_of(text).startswith(
        "sst2-80 Training in progress, or stopped early: these weights are from optimizer step 650 "
        "of 1,000. Their sparsity is 61.00%, the target 80.00%. This model"
    )


def test_finished_weights_that_miss_the_target_say_so_at_the_top():
    text = make_card(change(report=make_report(61, target=None)))
    assert words_of(text).startswith(
        "sst2-80 Not at the target: the sparsity of these weights is 61.00%, the target 80.00%. "
    )
    assert words_of(make_card(FULL)).startswith("sst2-80 This model is")


def test_the_best_model_of_a_run_is_called_that():
    text = make_card(change(record={"weights_step": 500}))
    chosen = "the best of the run, chosen by what is measured above."
    assert f"after optimizer step 500 of 1,000, {chosen}" in words_of(text)


def test_weights_of_a_first_cycle_have_seen_no_reset():
    text = make_card(change(record={"weights_step": 500}))
    words = words_of(text)
    assert "2 cycles were planned; these weights are from the first one, before any reset." in words
    assert "over the first 80% of the first of 2 cycles" in words
    assert "cyclical-pruning" not in metadata_of(text)["tags"]
    later = make_card(change(record={"weights_step": 501}))
    assert "were planned" not in later
    assert "cyclical-pruning" in metadata_of(later)["tags"]


def test_a_run_that_was_resumed_with_another_schedule_tells_no_plan():
    words = words_of(make_card(change(record={"is_plan_kept": False})))
    assert "The run was resumed with another schedule; below is the last one." in words
    assert "sparsity climbs" not in words
    assert "The learning rate runs" not in words


def test_weights_of_which_no_run_is_known_are_of_no_step():
    words = words_of(make_card(dataclasses.replace(FULL, record=RunRecord())))
    assert "after optimizer step" not in words
    assert "Training in progress" not in words
    assert "with cyclical pruning" in words


def test_two_sets_of_examples_have_no_common_number():
    text = make_card(change(record={"metrics": {**RECORD.metrics, "eval_accuracy_mm": 0.8}}))
    assert "100 examples" not in text
    assert "binomial" not in text


GRADUAL = {
    "gradual": ({"num_cycles": 1}, "over the first 80% of the run", "1710.01878"),
    "no dips": ({"reset_ratio": 1.0}, "over the first 80% of the first of 4 cycles", "1710.01878"),
    "restarts": (
        {"envelope": "rising", "reset_ratio": 1.0},
        *("over the first 80% of the run", "1710.01878"),
    ),
    "at once": ({"num_cycles": 1, "ramp_ratio": 0.0}, "at once, at the first step", "1506.02626"),
    "late": ({"num_cycles": 1, "ramp": "step"}, "at once, after 80% of the run", "1506.02626"),
    "never falls": ({"ramp": "constant"}, "at once, at the first step", "1506.02626"),
}


@pytest.mark.parametrize("name", GRADUAL)
def test_a_run_whose_sparsity_never_falls_is_not_called_cyclical(name):
    options, words, paper = GRADUAL[name]
    text = make_card(change(config=PruningConfig(sparsity=0.8, **options)))
    check_structure(text)
    assert "cyclical" not in text.lower()
    assert PAPER not in text
    assert words in words_of(text)
    assert f"https://arxiv.org/abs/{paper}" in text
    assert paper in code_of(text)[-1]
    (tag,) = [tag for tag in metadata_of(text)["tags"] if tag.endswith("-pruning")]
    assert tag == ("gradual-pruning" if paper == "1710.01878" else "one-shot-pruning")
    assert ("cycle" in tables_of(text)) == (options.get("num_cycles") != 1)


def test_rising_cycles_are_called_a_variant():
    config = PruningConfig(sparsity=0.8, envelope="rising", reset_ratio=0.7)
    text = make_card(change(config=config))
    assert "with rising cycles, a variant of cyclical pruning (Srinivas" in words_of(text)
    assert "each of the 4 cycles but the first it falls to 70% of that" in words_of(text)
    assert "after 30% of the cycle" in words_of(text)
    assert PAPER in code_of(text)[-1]


def test_a_run_that_held_its_zeros_has_no_target_and_no_method_to_cite():
    config = PruningConfig(method="hold")
    report = make_report(50, ("2:4",), None)
    text = make_card(change(config=config, report=report, record={"step": 10}))
    check_structure(text)
    assert "cyclical" not in text.lower()
    assert "with the zeros kept that it already had: 50.00%" in words_of(text)
    assert "Their sparsity is 50.00%. This" in words_of(text)
    assert "PruningConfig(method='hold')\n" in code_of(text)
    assert "Citation" not in headings_of(text)
    tags = metadata_of(text)["tags"]
    assert "2:4" in tags
    assert not any(tag.endswith("-pruning") for tag in tags)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "Linear layers inside the transformer's blocks. Embeddings"),
        ({"ignore": ["x"]}, "blocks, without those that ignore names. Embeddings"),
        ({"targets": ["x"]}, "those that the option targets below names. All others"),
    ],
)
def test_the_card_says_which_weights_it_counts(options, words):
    config = PruningConfig(sparsity=0.8, **options)
    text = make_card(change(config=config))
    assert words in words_of(text)
    assert eval(code_of(text)[2], {"PruningConfig": PruningConfig}) == config


# What is absent


OPTIONAL = {
    f.name: None if f.default is dataclasses.MISSING else f.default
    for f in dataclasses.fields(Card)
    if f.name not in ("model_name", "report", "config", "record")
}
OPTIONAL["pictures"] = {}
IN_RECORD = {
    "metrics": {},
    "base_model": None,
    "card": {},
    "hyperparameters": {},
    "versions": {},
    "command": None,
}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sets(st.sampled_from(list(OPTIONAL))),
    st.sets(st.sampled_from(list(IN_RECORD))),
    st.sets(st.sampled_from(list(CARD))),
    st.sets(st.sampled_from(list(FULL.pictures))),
    st.booleans(),
)
def test_what_is_not_known_leaves_no_trace(missing, missing_in_record, unsaid, unseen, has_cycles):
    card = {name: value for name, value in CARD.items() if name not in unsaid}
    pictures = {name: path for name, path in FULL.pictures.items() if name not in unseen}
    facts = change(
        record={"card": card, **{name: IN_RECORD[name] for name in missing_in_record}},
        report=make_report(cycles=CYCLES if has_cycles else ()),
        **{"pictures": pictures, **{name: OPTIONAL[name] for name in missing}},
    )
    text = make_card(facts)
    check_structure(text)
    assert re.search(r"\b(None|nan|inf|unknown|null)\b|\{\{|\}\}|\{%|\[\]|\(\)|\{\}", text) is None
    assert re.search(r" [,.;:)]|\n\n\n|[^ \n]  [^ =#]", without_code(text)) is None
    shown = {
        "metric": bool(facts.record.metrics),
        "cycle": has_cycles,
        "weights": bool(facts.dense_bytes or (facts.packed_bytes and facts.packed_folder)),
    }
    tables = tables_of(text)
    assert {name: name in tables for name in shown} == shown
    assert ("Size on disk" in headings_of(text)) == shown["weights"]
    assert ("Cycles" in headings_of(text)) == (has_cycles or "recovery" in facts.pictures)
    assert ("subfolder" in text) == bool(facts.packed_folder)
    assert ("AutoTokenizer" in text) == bool(facts.has_tokenizer and facts.model_class)
    assert ("parameters of the whole model" in text) == bool(facts.num_parameters)
    assert ("Command:" in text) == bool(facts.record.command)
    assert ("dense" in tables.get("metric", [[]])[0]) == bool(
        facts.record.metrics and facts.record.dense_metrics
    )


def test_the_card_of_a_run_of_which_little_is_known_is_short():
    text = make_card(BARE)
    check_structure(text)
    assert headings_of(text) == [
        *("bare", "How to use", "Results", "Sparsity by layer", "Training", "Limits", "Citation")
    ]
    assert set(metadata_of(text)) == {"library_name", "tags"}
    assert "The model's answers were not evaluated." in text


# Text of others


HOSTILE = [
    *("a|b", "|", "\\|", "`x`", "```", "~~~", "---", "a\n---\nb", "\n\n# h\n", "'\"", "# h", "#"),
    *("{{ 1 }}", "{% if %}", "<b>", "<!-- x", "-->", "[x](y)", "![x](y)", "*a*", "_a_", "a_b"),
    *("- x", "1. x", "> q", "$$x$$", "\\", "&lt;", "&", "no", "~", "@x", "a: b", "é😀", "!!x"),
    *("</details>", "\x00\x1b[0m", "\u2028x", "\ud800", "https://x.y", "a\r\nb", "    x", "%"),
]


def put_everywhere(text):
    """The full facts with one text wherever a text of others may be."""
    names = ["language", "license", "tasks", "dataset_args", "dataset", "tags", "finetuned_from"]
    card = {**CARD, **dict.fromkeys(names, text), "dataset_metadata": [{"split": text}]}
    record = {
        "card": card,
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


# Whose card it is


def test_a_card_is_ours_until_the_line_that_says_so_is_deleted():
    text = make_card(FULL)
    assert is_own_card(text)
    assert is_own_card(text.replace("\n", "\r\n"))
    assert is_own_card(str(ModelCard(text)))
    (mark,) = [line for line in text.splitlines() if line.startswith("<!--")]
    assert "Delete this line" in mark
    assert not is_own_card(text.replace(mark + "\n", ""))
    assert not is_own_card("")
    assert not is_own_card("# A model\n\npruned with hf_cyclprune")


def test_a_folder_gives_the_same_card_as_the_run_that_wrote_it(tmp_path):
    FULL.report.save(tmp_path)
    FULL.record.save(tmp_path)
    save_config(FULL.config, tmp_path)
    loaded = dataclasses.replace(
        FULL,
        report=load_report(tmp_path),
        record=load_record(tmp_path),
        config=load_config(tmp_path),
    )
    assert make_card(loaded) == make_card(FULL)
