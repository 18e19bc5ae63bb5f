"""A model is found in a folder or on the Hub; from there come safetensors, and no code."""

import pytest

from hf_cyclprune import PruningConfig, pack, prune_
from hf_cyclprune.inference.source import find_folder
from hf_cyclprune.packing.model import read_model
from hf_cyclprune.packing.verification import verify
from tests.hub.connect import connect
from tests.hub.server import HubServer


@pytest.fixture
def folder(tiny_bert, tmp_path):
    model = tiny_bert()
    prune_(model, PruningConfig(sparsity=0.9))
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with HubServer() as server:
        connect(server, monkeypatch, tmp_path / "home")
        yield server


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_name_on_the_hub_is_downloaded_without_code_or_pickles(hub, folder, tmp_path, is_packed):
    source = folder
    if is_packed:
        source = tmp_path / "packed"
        pack(folder, source)
    for name in ("tokenizer.json", "pytorch_model.bin", "model.py", "README.md"):
        (source / name).write_text("{}")
    hub.add_folder("lab/model", source)
    found = find_folder("lab/model")
    weights = "model.sparse.safetensors" if is_packed else "model.safetensors"
    assert {p.name for p in found.iterdir()} == {"config.json", weights, "tokenizer.json"}
    assert verify(found, folder) is None
    assert type(read_model(found)).__name__ == "BertForSequenceClassification"


def test_a_name_that_is_nowhere_is_one_sentence(hub):
    for name in ("lab/none", "a/b/c"):
        with pytest.raises(ValueError, match=f"on the Hub; got '{name}': "):
            find_folder(name)


def test_a_model_in_a_pickle_alone_is_refused(hub, folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    hub.add_folder("lab/old", folder)
    with pytest.raises(ValueError, match=r"There is no model\.safetensors in"):
        read_model(find_folder("lab/old"))
