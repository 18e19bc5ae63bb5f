import sys

import pytest

from hf_cyclprune.hub.folder import card_of_folder
from hf_cyclprune.hub.page import (
    add_extras,
    find_license,
    is_generated,
    remove_extras,
    write_card,
)
from tests.hub.connect import connect
from tests.hub.server import HubServer


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
    card = card_of_folder(folder)
    assert write_card(folder, card)
    text = (folder / "README.md").read_text()
    assert "subfolder" not in text
    assert f"{(folder / 'model.safetensors').stat().st_size:,}" in text
    add_extras(folder)
    assert write_card(folder, card)
    text = (folder / "README.md").read_text()
    assert 'subfolder="sparse"' in text
    assert f"{(folder / 'sparse' / 'model.sparse.safetensors').stat().st_size:,}" in text
    assert not [path.name for path in folder.iterdir() if path.name.startswith("_")]


def test_only_what_was_written_here_is_deleted(folder):
    mine = [folder / "pictures" / "cat.png", folder / "sparse" / "matrix.txt"]
    mine.append(folder / "bench.json")
    for path in mine:
        path.parent.mkdir(exist_ok=True)
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
