import json
import logging

import pytest
import torch
from transformers import AutoConfig, BertConfig, BertForSequenceClassification, RobertaConfig

from hf_cyclprune.glue.arguments import GlueArguments
from hf_cyclprune.glue.model import check_length, load_classifier, load_task_config, load_tokenizer
from hf_cyclprune.glue.tasks import TASKS


def arguments(folder, task="mnli", **options):
    return GlueArguments(task, str(folder), **options)


@pytest.fixture
def classifier(tmp_path):
    """Save a tiny classifier with these labels in this order."""

    def save(labels, dtype=torch.float32, name="classifier"):
        shape = {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8}
        config = BertConfig(
            num_attention_heads=1, vocab_size=9, id2label=dict(enumerate(labels)), **shape
        )
        config.label2id = {label: i for i, label in enumerate(labels)}
        BertForSequenceClassification(config).to(dtype).save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


@pytest.mark.parametrize("name", TASKS)
def test_the_config_names_the_labels_of_the_task(name, tiny_folder):
    task = TASKS[name]
    config = load_task_config(arguments(tiny_folder, name), task)
    assert tuple(config.id2label.values()) == task.labels
    assert config.num_labels == len(task.labels)
    is_regression = config.problem_type == "regression"
    assert is_regression == (name == "stsb")


def test_a_model_keeps_the_order_of_its_own_labels(classifier):
    folder = classifier(["CONTRADICTION", "ENTAILMENT", "NEUTRAL"])
    config = load_task_config(arguments(folder), TASKS["mnli"])
    assert config.id2label == {0: "contradiction", 1: "entailment", 2: "neutral"}
    assert config.label2id == {"contradiction": 0, "entailment": 1, "neutral": 2}


def test_the_names_that_predictions_are_shown_with_decide(classifier):
    """A config may name its labels in id2label only, or name other labels in label2id."""
    folder = classifier(["CONTRADICTION", "ENTAILMENT", "NEUTRAL"])
    config = json.loads((folder / "config.json").read_text())
    for label2id in ({"ENTAILMENT": 0, "NEUTRAL": 1, "CONTRADICTION": 2}, None):
        config["label2id"] = label2id
        (folder / "config.json").write_text(json.dumps(config))
        ids = load_task_config(arguments(folder), TASKS["mnli"]).label2id
        assert ids == {"contradiction": 0, "entailment": 1, "neutral": 2}


def test_a_tokenizer_without_padding_is_refused(tiny_folder, tmp_path):
    tokenizer = load_tokenizer(arguments(tiny_folder))
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((tiny_folder / "config.json").read_bytes())
    with pytest.raises(ValueError, match="model_name_or_path must have a padding token"):
        load_tokenizer(arguments(tmp_path))


def test_labels_of_another_task_give_way(classifier):
    folder = classifier(["negative", "neutral", "positive"])
    assert load_task_config(arguments(folder), TASKS["mnli"]).id2label[0] == "entailment"


def test_training_is_in_fp32_whatever_was_saved(classifier):
    glue = arguments(classifier(TASKS["mnli"].labels, torch.bfloat16))
    model = load_classifier(glue, load_task_config(glue, TASKS["mnli"]))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_head_of_another_size_is_refused_unless_it_may_be_new(classifier):
    folder = classifier(["a", "b"])
    glue = arguments(folder)
    config = load_task_config(glue, TASKS["mnli"])
    with pytest.raises(ValueError, match=r"must fit mnli, which has 3 outputs.*--ignore_mismatch"):
        load_classifier(glue, config)
    glue = arguments(folder, ignore_mismatched_sizes=True)
    assert load_classifier(glue, config).classifier.out_features == 3


def test_a_model_that_cannot_be_had_is_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("/nosuch/folder", "./nosuch", str(tmp_path / "empty"), "some/model"):
        with pytest.raises(ValueError, match="model_name_or_path must be a folder") as caught:
            load_task_config(arguments(name), TASKS["mnli"])
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="tokenizer_name must be a folder"):
        load_tokenizer(arguments("some/model", tokenizer_name="/nosuch"))


def load(folder):
    glue = arguments(folder)
    return load_classifier(glue, load_task_config(glue, TASKS["mnli"]))


def damage(folder, kind):
    weights = folder / "model.safetensors"
    if kind == "torn":
        weights.write_bytes(weights.read_bytes()[:-9])
    else:
        weights.unlink()
    if kind == "pickled":
        torch.save({}, folder / "pytorch_model.bin")


@pytest.mark.parametrize("kind", ["pickled", "missing", "torn"])
def test_weights_that_cannot_be_read_are_refused_with_a_remedy_that_helps(classifier, kind):
    folder = classifier(TASKS["mnli"].labels)
    damage(folder, kind)
    rule = "model_name_or_path must be a folder with a model in safetensors"
    with pytest.raises(ValueError, match=rf"{rule}.*Save it again, with save_pretrained\.$"):
        load(folder)


@pytest.mark.parametrize("entry", [{"hidden_size": "wide"}, {"model_type": None}, {"id2label": 5}])
def test_a_config_that_cannot_be_read_is_one_sentence(classifier, entry):
    folder = classifier(TASKS["mnli"].labels)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entry))
    with pytest.raises(ValueError, match=r"^model_name_or_path must .*Save it again, with .*\.$"):
        load(folder)


@pytest.mark.parametrize(
    "kind", ["bert", "roberta", "deberta-v2", "mpnet", "t5", "esm", "modernbert"]
)
def test_a_model_without_a_tokenizer_is_refused(tmp_path, kind):
    """transformers makes a tokenizer that knows no word."""
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    rule = r"model_name_or_path must be a folder with a tokenizer.*"
    with pytest.raises(ValueError, match=rf"{rule} Pass --tokenizer_name, or save one there\.$"):
        load_tokenizer(arguments(tmp_path))


def test_a_tokenizer_from_elsewhere_stands_in_for_one_that_is_missing(tmp_path, tiny_folder):
    AutoConfig.for_model("bert").save_pretrained(tmp_path)
    assert len(load_tokenizer(arguments(tmp_path, tokenizer_name=str(tiny_folder)))) > 100
    AutoConfig.for_model("bert").save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="tokenizer_name must be a folder with a tokenizer"):
        load_tokenizer(arguments(tiny_folder, tokenizer_name=str(tmp_path / "other")))


def test_a_tokenizer_of_characters_is_one(tmp_path):
    AutoConfig.for_model("canine").save_pretrained(tmp_path)
    assert load_tokenizer(arguments(tmp_path)).pad_token is not None


def test_code_of_the_repository_is_not_run(classifier):
    folder = classifier(TASKS["mnli"].labels)
    config = AutoConfig.from_pretrained(folder)
    config.auto_map = {"AutoConfig": "evil.Config"}
    config.model_type = "evil"
    config.save_pretrained(folder)
    text = (folder / "config.json").read_text().replace('"model_type": "bert"', '"model_type": "e"')
    (folder / "config.json").write_text(text)
    (folder / "evil.py").write_text("raise SystemExit('ran')\n")
    with pytest.raises(ValueError, match="model_name_or_path must be a folder"):
        load_task_config(arguments(folder), TASKS["mnli"])


def test_a_longer_length_than_the_models_is_cut_with_a_warning(tiny_folder, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    tokenizer = load_tokenizer(arguments(tiny_folder))
    bert = BertConfig(max_position_embeddings=48)
    roberta = RobertaConfig(max_position_embeddings=48, pad_token_id=1)
    longest = tokenizer.model_max_length
    assert longest == 64
    for config, wanted, length in (
        (BertConfig(), 16, 16),
        (BertConfig(), 640, 64),
        (bert, 64, 48),
        (roberta, 64, 46),
    ):
        assert (
            check_length(arguments(tiny_folder, max_seq_length=wanted), tokenizer, config) == length
        )
