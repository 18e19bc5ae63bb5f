import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from huggingface_hub import ModelCard

from hf_cyclprune.card.rendering import make_card
from hf_cyclprune.config import PruningConfig
from tests.card.examples import (
    BARE,
    FULL,
    HOSTILE,
    OPTIONS,
    change,
    check_structure,
    make_report,
    metadata_of,
    tables_of,
    words_of,
)
from tests.hub.server import WRITE_TOKEN, HubServer


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


@pytest.mark.parametrize(
    "changes",
    [
        {"record": {"metrics": {}}},
        {"record": {"metrics": {"eval_loss": 0.1}}},
        {"record": {"card": {**OPTIONS, "dataset_tags": None}}},
        {"record": {"card": {**OPTIONS, "dataset_tags": ["a", "b"]}}},
        {"record": {"card": {**OPTIONS, "dataset_tags": "/data/mine"}}},
        {"record": {"card": {**OPTIONS, "tasks": None}}, "model_class": "BertForPreTraining"},
    ],
)
def test_half_a_result_is_not_reported(changes):
    text = make_card(change(**changes))
    check_structure(text)
    assert "model-index" not in metadata_of(text)


def test_the_options_of_the_caller_go_before_what_was_found():
    given = {"license": "mit", "finetuned_from": "org/other", "tasks": ["fill-mask"], "tags": "x"}
    data = metadata_of(make_card(change(record={"card": given})))
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
    card = change(model_name=word, record={"card": {**OPTIONS, "tags": [word], "dataset": word}})
    text = make_card(card)
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
    options = {**OPTIONS, "tags": None}
    tags = metadata_of(make_card(change(report=make_report(0), record={"card": options})))["tags"]
    assert {"pruned", "unstructured"}.isdisjoint(tags)
