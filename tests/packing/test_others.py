"""What lies beside a model's weights: which files go with them, and which ones stay behind."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from hf_cyclprune import PruningConfig, pack, prune_, unpack
from hf_cyclprune.config_file import save_config
from hf_cyclprune.hub.folder import card_of_folder
from hf_cyclprune.hub.push import push_folder
from hf_cyclprune.hub.remote import staged
from hf_cyclprune.packing.others import model_files
from hf_cyclprune.reporting.folder import report_folder
from tests.hub.connect import connect
from tests.hub.repos import make_bert, make_tokenizer
from tests.hub.server import HubServer
from tests.packing.models import DENSE, QUERY

REPO, TEXT = "tester/sentences", "a happy cat"
MODULES = ["", "1_Pooling", "2_Dense"]
"""The folders of a sentence transformer's modules, the first of which is its root."""


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"content of {name}")


def tree(folder):
    """Return the bytes of each file in a folder and its sub-folders, by path."""
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def sentences(dense):
    """The folder of a model with the modules that a sentence transformer keeps in sub-folders."""
    modules = [{"idx": i, "name": str(i), "path": path} for i, path in enumerate(MODULES)]
    (dense / "modules.json").write_text(json.dumps(modules))
    put(dense, "1_Pooling/config.json", "2_Dense/config.json", "notes/deep/mine.txt", "runs/a/log")
    weights = {"linear.weight": load_file(dense / DENSE)[QUERY]}
    save_file(weights, dense / "2_Dense" / DENSE, {"format": "pt"})
    return dense


def test_packing_and_unpacking_keep_every_file_of_every_sub_folder(sentences, tmp_path):
    before = tree(sentences)
    pack(sentences, tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "out")
    assert tree(tmp_path / "out") == before
    packed = tree(tmp_path / "packed")
    own = {"config.json", DENSE}
    kept = {path: content for path, content in before.items() if path not in own}
    assert {path: packed[path] for path in kept} == kept
    assert packed.keys() - kept.keys() == {"config.json", "model.sparse.safetensors"}


@pytest.fixture
def push(monkeypatch, tmp_path):
    """Push a pruned model's folder to a Hub of its own, and return the files there."""

    with HubServer() as hub:

        def push(folder):
            save_config(PruningConfig(sparsity=0.8, num_cycles=1), folder)
            report_folder(folder).save(folder)
            connect(hub, monkeypatch, tmp_path / "home")
            push_folder(folder, REPO, card_of_folder(folder))
            return hub.files(REPO)

        yield push


def test_a_push_brings_every_file_of_every_sub_folder(sentences, push):
    put(sentences, "pictures/mine.png")
    before = tree(sentences)
    files = push(sentences)
    assert {path: files[path] for path in before} == before
    below = {path for path in files if path.startswith("sparse/")}
    assert {"sparse/config.json", "sparse/model.sparse.safetensors"} <= below
    assert not [path for path in below if path.count("/") > 1], "only for from_pretrained"


LEFT = [
    *("training_args.bin", "tf_model.h5", "pruning_state.safetensors", "_half.json.1.tmp"),
    *("checkpoint-10/a.txt", "checkpoint-10/model.safetensors", "_teacher/config.json"),
    *("_saving-x/model.safetensors", ".cache/huggingface/x", ".git/config", "runs/_x"),
    *("run-0/checkpoint-3/model.safetensors", "2_Dense/_half.tmp"),
    *("checkpoint-10/pruning_average.safetensors", "1_Pooling/pruning_state.safetensors"),
]


@pytest.mark.parametrize("work", ["pack", "push"])
def test_what_only_training_needs_stays_behind(sentences, tmp_path, work):
    wanted = {path for path in tree(sentences) if path not in ("config.json", DENSE)}
    put(sentences, *LEFT)
    if work == "pack":
        pack(sentences, tmp_path / "packed")
        found = tree(tmp_path / "packed").keys() - {"model.sparse.safetensors", "config.json"}
    else:
        with staged(sentences) as stage:
            found = tree(stage).keys() - {"config.json", DENSE}
    assert found == wanted


def test_another_model_in_a_sub_folder_is_not_part_of_this_one(sentences, tmp_path):
    wanted = set(model_files(sentences))
    shutil.copytree(sentences, tmp_path / "copy")
    for place in ("best", "seeds/1"):
        shutil.copytree(tmp_path / "copy", sentences / place)
    pack(sentences, sentences / "sparse")
    assert set(model_files(sentences)) == wanted
    with staged(sentences) as stage:
        assert not (stage / "sparse").exists()
        assert not (stage / "seeds").exists()


def test_a_folder_is_packed_into_itself_without_end(sentences):
    before = tree(sentences)
    pack(sentences, sentences / "inside" / "packed")
    packed = tree(sentences / "inside" / "packed")
    assert packed.keys() - before.keys() == {"model.sparse.safetensors"}


def test_links_are_followed_in_a_folder_and_in_the_cache_of_the_hub(sentences, tmp_path):
    before = tree(sentences)
    cache = tmp_path / "models--a--b"
    snapshot = cache / "snapshots" / "123"
    (cache / "blobs").mkdir(parents=True)
    for number, name in enumerate(before):
        (cache / "blobs" / str(number)).write_bytes(before[name])
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        depth = "../" * (name.count("/") + 2)
        (snapshot / name).symlink_to(f"{depth}blobs/{number}")
    (snapshot / "again.txt").symlink_to("notes/deep/mine.txt")
    pack(snapshot, tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "out")
    assert tree(tmp_path / "out") == before | {"again.txt": before["notes/deep/mine.txt"]}
    assert not any(path.is_symlink() for path in (tmp_path / "packed").rglob("*"))


def test_links_that_lead_out_of_a_folder_stay_behind_with_a_warning(sentences, tmp_path, caplog):
    put(tmp_path, "secret/key", "models--a--b/blobs/key")
    (sentences / "key").symlink_to(tmp_path / "secret" / "key")
    (sentences / "2_Dense" / "key").symlink_to("../../models--a--b/blobs/key")
    (sentences / "secret").symlink_to(tmp_path / "secret")
    (sentences / "loop").symlink_to(sentences)
    (sentences / "broken").symlink_to("nowhere")
    for link in (sentences / "config.json", sentences / DENSE):
        (tmp_path / link.name).write_bytes(link.read_bytes())
        link.unlink()
        link.symlink_to(tmp_path / link.name)  # these two are what the user asked for
    with caplog.at_level("WARNING"):
        pack(sentences, tmp_path / "packed")
    assert not {"key", "2_Dense/key", "secret/key", "broken"} & tree(tmp_path / "packed").keys()
    assert not [path for path in tree(tmp_path / "packed") if path.startswith("loop")]
    (message,) = [record.getMessage() for record in caplog.records]
    assert "2_Dense/key, key" in message
    assert message.endswith("Put copies in their place.")
    with staged(sentences) as stage:
        assert {"config.json", DENSE} <= tree(stage).keys()
        assert "key" not in tree(stage)


def test_a_pickle_that_a_module_may_need_is_named_in_a_warning(sentences, tmp_path, caplog):
    put(sentences, "2_Dense/pytorch_model.bin", "model_head.pkl", "optimizer.pt", "rng_state.pth")
    with caplog.at_level("WARNING"):
        pack(sentences, tmp_path / "packed")
    assert not [path for path in tree(tmp_path / "packed") if path.endswith((".bin", ".pkl"))]
    (message,) = [record.getMessage() for record in caplog.records]
    assert "2_Dense/pytorch_model.bin, model_head.pkl stay" in message
    assert "optimizer.pt" not in message


@pytest.fixture
def encoder(tmp_path):
    """The folder of a pruned sentence transformer with four modules, and what it says of a text."""
    name = "sentence_transformers.sentence_transformer.modules"
    modules = pytest.importorskip(name, reason="sentence-transformers is not installed")
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path / "bert")
    bert = make_bert(len(tokenizer)).bert
    prune_(bert, PruningConfig(sparsity=0.8, num_cycles=1))
    bert.save_pretrained(tmp_path / "bert")
    parts = [modules.Transformer(str(tmp_path / "bert")), modules.Pooling(32)]
    parts += [modules.Dense(32, 8), modules.Normalize()]
    model = pytest.importorskip("sentence_transformers").SentenceTransformer(modules=parts)
    model.save_pretrained(str(tmp_path / "st"))
    return tmp_path / "st", model.encode(TEXT)


def test_a_sentence_transformer_loads_packed_unpacked_and_from_the_hub(encoder, tmp_path, push):
    folder, expected = encoder
    pack(folder, tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "out")
    push(folder)
    load = pytest.importorskip("sentence_transformers").SentenceTransformer
    for place in (tmp_path / "packed", tmp_path / "out", REPO):
        assert (load(str(place)).encode(TEXT) == expected).all(), place
