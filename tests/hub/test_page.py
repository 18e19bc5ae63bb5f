"""The pieces of a push: the card, the facts, what is uploaded, and what is kept secret."""

import copy
import json
import os
import pickle
import shutil
import sys
from dataclasses import replace

import pytest
from huggingface_hub.errors import LocalTokenNotFoundError
from safetensors import SafetensorError
from transformers import TrainingArguments

from hf_cyclprune import PruningConfig
from hf_cyclprune.config import save_config
from hf_cyclprune.hub.errors import PushError, explain, explained
from hf_cyclprune.hub.folder import card_of_folder
from hf_cyclprune.hub.page import (
    add_extras,
    find_license,
    is_generated,
    remove_extras,
    write_card,
    write_facts,
)
from hf_cyclprune.hub.remote import Branch
from hf_cyclprune.hub.stage import staged
from hf_cyclprune.packing.weights import fingerprint
from hf_cyclprune.reporting.cycles import CycleReport
from hf_cyclprune.reporting.run import RunRecord
from hf_cyclprune.secrets import Secret, redact
from hf_cyclprune.training.upstream import save_under_own_names
from tests.hub.connect import connect
from tests.hub.server import HubServer

TOKEN = "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH"


@pytest.fixture
def folder(tiny_bert, tmp_path):
    """A pruned model as an older version left it: with its config and the Trainer's state."""
    place = tmp_path / "model"
    model = tiny_bert()
    for name, weight in model.named_parameters():
        if ".layer." in name and weight.ndim == 2:
            weight.data.view(-1)[::2] = 0
    model.save_pretrained(place)
    save_config(PruningConfig(sparsity=0.5, num_cycles=1), place)
    state = {"global_step": 4, "max_steps": 8, "log_history": [{"step": 4, "loss": 1.0}]}
    (place / "trainer_state.json").write_text(json.dumps(state))
    return place


def test_facts_come_from_the_weights(folder):
    facts = card_of_folder(folder)
    assert (facts.report.sparsity, facts.report.is_at_target) == (0.5, True)
    assert (facts.model_name, facts.model_class) == ("model", "BertForSequenceClassification")
    record = facts.record
    assert (record.step, record.total_steps, record.is_finished) == (4, 8, False)


def test_metrics_of_other_weights_are_not_told(folder):
    facts = card_of_folder(folder)
    record = RunRecord(8, 8, 8, metrics={"eval_accuracy": 0.5})
    record.save(folder)
    facts.report.save(folder)
    assert card_of_folder(folder).record.metrics == {"eval_accuracy": 0.5}
    path = folder / "sparsity_report.json"
    path.write_text(path.read_text().replace('"num_zeros": 128', '"num_zeros": 127'))
    assert card_of_folder(folder).record.metrics == {}


def test_what_is_known_of_other_weights_is_not_told(folder, tiny_bert):
    facts = card_of_folder(folder)
    cycles = (CycleReport(1, 8, 0.5),)
    record = RunRecord(8, 8, 8, {"eval_accuracy": 0.5}, base_model="lab/base")
    replace(record, fingerprint=fingerprint(folder)).save(folder)
    replace(facts.report, cycles=cycles).save(folder)
    told = card_of_folder(folder)
    assert (told.record.metrics, told.report.cycles) == ({"eval_accuracy": 0.5}, cycles)
    model = type(tiny_bert()).from_pretrained(folder)
    save_under_own_names(model)  # transformers 5.0.0 would not
    model.save_pretrained(folder, max_shard_size="20KB")  # the same ones in other files
    (folder / "model.safetensors").unlink()
    assert card_of_folder(folder).record.metrics == {"eval_accuracy": 0.5}
    model.classifier.weight.data.zero_()  # as many zeros in the target weights as before
    model.save_pretrained(folder, max_shard_size="20KB")
    other = card_of_folder(folder)
    assert other.report.num_zeros == facts.report.num_zeros
    assert (other.record.metrics, other.record.total_steps, other.report.cycles) == ({}, None, ())
    assert other.record.base_model == "lab/base"


def test_a_copy_in_sparse_holds_what_a_model_needs_and_no_more(folder):
    for name in ("notes.txt", "data.csv", "README_old.md", "train_results.json"):
        (folder / name).write_text("x")
    for name in ("tokenizer.json", "vocab.txt", "generation_config.json", "spiece.model"):
        (folder / name).write_text("{}")
    add_extras(folder)
    assert sorted(path.name for path in (folder / "sparse").iterdir()) == [
        *("config.json", "generation_config.json", "model.sparse.safetensors"),
        *("pruning_config.json", "spiece.model", "tokenizer.json", "vocab.txt"),
    ]


def test_a_card_is_written_for_what_lies_there(folder):
    facts = card_of_folder(folder)
    assert write_card(folder, facts)
    card = (folder / "README.md").read_text()
    assert "subfolder" not in card
    assert f"{(folder / 'model.safetensors').stat().st_size:,}" in card
    add_extras(folder)
    assert write_card(folder, facts)
    card = (folder / "README.md").read_text()
    assert 'subfolder="sparse"' in card
    assert f"{(folder / 'sparse' / 'model.sparse.safetensors').stat().st_size:,}" in card
    assert not [path.name for path in folder.iterdir() if path.name.startswith("_")]


def test_only_what_was_written_here_is_deleted(folder):
    mine = [folder / "pictures" / "cat.png", folder / "sparse" / "matrix.txt"]
    for path in mine:
        path.parent.mkdir()
        path.write_text("mine")
    remove_extras(folder)
    assert all(path.read_text() == "mine" for path in mine)
    mine[1].unlink()
    add_extras(folder)
    assert write_card(folder, card_of_folder(folder))
    remove_extras(folder)
    assert mine[0].read_text() == "mine"
    assert [path.name for path in mine[0].parent.iterdir()] == ["cat.png"]
    assert not (folder / "sparse").exists()


@pytest.mark.parametrize("text", ["# Mine\n", "---\nlicense: mit\n---\n\nMine", "\ufeffMine"])
def test_the_text_of_a_person_is_not_written_over(text, folder):
    (folder / "README.md").write_text(text, encoding="utf-8")
    assert not is_generated(text)
    assert not write_card(folder, card_of_folder(folder))
    assert (folder / "README.md").read_text(encoding="utf-8") == text


@pytest.mark.parametrize("text", ["", "---\nlicense: mit\n---\n", "---\n---\n\n \n"])
def test_metadata_alone_is_no_text_of_a_person(text, folder):
    (folder / "README.md").write_text(text)
    assert write_card(folder, card_of_folder(folder))


def test_no_picture_without_matplotlib(folder, monkeypatch):
    for name in list(sys.modules):
        if name.startswith(("matplotlib", "hf_cyclprune.pictures.plots")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    add_extras(folder)
    assert (folder / "sparse" / "config.json").is_file()
    assert not (folder / "pictures").exists()


def test_what_only_a_trainer_needs_is_not_uploaded(folder):
    left = ("training_args.bin", "optimizer.pt", "rng_state.pth", "_half.json", ".env", "a.pkl")
    for name in (*left, "pruning_state.safetensors", "notes.txt", "runs/one/events", "runs/_x"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "checkpoint-4").mkdir()
    (folder / "checkpoint-4" / "model.safetensors").touch()
    before = (folder / "config.json").read_bytes()
    with staged(folder) as stage:
        names = {path.relative_to(stage).as_posix() for path in stage.rglob("*") if path.is_file()}
        facts = card_of_folder(folder)
        facts.report.save(folder)
        write_facts(stage, replace(facts, record=RunRecord(1, 1, 1)))
    own = {"config.json", "model.safetensors", "pruning_config.json", "trainer_state.json"}
    assert names == {*own, "notes.txt", "runs/one/events"}
    assert not (folder / "pruning_run.json").exists(), "the folder itself is not changed"
    assert (folder / "config.json").read_bytes() == before


def test_the_license_is_asked_of_the_hub_once_and_may_be_unknown(tmp_path, monkeypatch):
    with HubServer() as hub:
        connect(hub, monkeypatch, tmp_path)
        find_license.cache_clear()
        hub.add_repo("lab/bert", {"README.md": b"---\nlicense: apache-2.0\n---\n"})
        assert [find_license("lab/bert") for _ in range(2)] == ["apache-2.0"] * 2
        assert find_license("lab/none") is None
        asked = [r.path for r in hub.requests if r.path.startswith("/api/models/")]
        assert asked == ["/api/models/lab/bert", "/api/models/lab/none"]
        hub.stop()
        assert find_license("lab/other") is None
        assert find_license("no repository at all") is None
    find_license.cache_clear()


def test_one_commit_replaces_a_model_and_its_copy(folder, tmp_path, monkeypatch):
    """Also where it is in other files than the one before."""
    with HubServer() as hub:
        connect(hub, monkeypatch, tmp_path)
        old = ["model-00001-of-00001.safetensors", "model.safetensors.index.json"]
        old.append("sparse/model.sparse.safetensors")
        hub.add_repo("tester/model", {**dict.fromkeys(old, b"old"), "b.txt": b"b"})
        write_card(folder, card_of_folder(folder))
        RunRecord(1, 1, 1).save(folder)
        branch = Branch("tester/model")
        for _ in range(2):
            branch.replace_old(folder, folder, "New")
            assert [commit.title for commit in hub.commits("tester/model")][:-1] == ["New"]
        assert not {*old} & hub.files("tester/model").keys()
        assert {"model.safetensors", "README.md", "b.txt"} <= hub.files("tester/model").keys()
        checkpoint = shutil.copytree(folder, tmp_path / "checkpoint")
        (folder / "pictures").mkdir()
        (folder / "pictures" / "mine.png").write_bytes(b"mine")
        hub.add_files("tester/model", {"pictures/mine.png": b"mine"})
        branch.replace_old(checkpoint, folder, "Not needed")
        assert hub.commits("tester/model")[0].title == "add files"
        packed = {"sparse/b": b"old", "sparse/model.sparse.safetensors": b"old"}
        hub.add_files("tester/model", packed)
        branch.replace_old(checkpoint, folder, "Newer")
        assert hub.files("tester/model")["pictures/mine.png"] == b"mine"
        assert "sparse/b" not in hub.files("tester/model")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_secret_is_in_no_pickle(protocol):
    args = TrainingArguments("out", hub_token=Secret(TOKEN), use_cpu=True)
    data = pickle.dumps(args, protocol)
    assert TOKEN.encode() not in data
    assert pickle.loads(data).hub_token is None
    for secret in (copy.copy(args), copy.deepcopy(args), replace(args)):
        assert f"Bearer {secret.hub_token}" == f"Bearer {TOKEN}"
        assert TOKEN.encode() not in pickle.dumps(secret, protocol)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--hub_token", TOKEN],
        ["--hub-token", "plain", "--x"],
        ["--hub_token=plain"],
        ["--hub_tok", TOKEN],
        ["--hub_tok=" + TOKEN],
        ["--url", f"https://user:{TOKEN}@hub"],
        ["--wandb_api_key=plain"],
        ["--config", '{"hub_token": "plain"}'],
    ],
)
def test_a_command_line_shows_no_token(arguments):
    shown = " ".join(redact(arguments, "plain"))
    assert TOKEN not in shown
    assert "plain" not in shown
    assert "<token>" in shown


def test_a_command_line_shows_all_else():
    arguments = ["glue", "--output_dir", "hf_runs/a", "--tokenizer_name", "t", "--sparsity=0.8"]
    assert redact(arguments) == arguments


def number(code):
    return OSError(code, os.strerror(code), "/some/file")


def test_errors_say_what_to_do():
    said = {
        TimeoutError("late"): "the Hub must be reachable to push to 'a/b'",
        LocalTokenNotFoundError("x"): "got none. Run `hf auth login`",
        number(28): "'No space left on device' at /some/file. Nothing is lost",
        SafetensorError("I/O error: File too large (os error 27)"): "'File too large'. Nothing",
    }
    for error, words in said.items():
        assert words in explain("a/b", error)
        with pytest.raises(PushError, match="a/b"), explained("a/b"):
            raise error
    wrapped = RuntimeError("Error while uploading 'x'")
    wrapped.__cause__ = TimeoutError("late")
    assert explain("a/b", wrapped) == explain("a/b", TimeoutError("late"))
    assert "must be done whole; got FileNotFoundError" in explain("a/b", FileNotFoundError("x"))


@pytest.mark.parametrize(
    "error", [ValueError("v"), RuntimeError("r"), FileNotFoundError(2, "f"), KeyboardInterrupt()]
)
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as raised, explained("a/b"):
        raise error
    assert raised.value is error
