import shutil
from dataclasses import replace

from hf_cyclprune.hub.folder import card_of_folder
from hf_cyclprune.hub.page import write_card
from hf_cyclprune.hub.remote import Branch, staged
from hf_cyclprune.reporting.run import RunRecord
from tests.hub.connect import connect
from tests.hub.server import HubServer


def test_what_only_a_trainer_needs_is_not_uploaded(folder):
    left = ("training_args.bin", "optimizer.pt", "rng_state.pth", "_half.json", ".env", "a.pkl")
    for name in (*left, "pruning_state.safetensors", "notes.txt", "runs/one/events", "runs/_x"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "checkpoint-4").mkdir()
    (folder / "checkpoint-4" / "model.safetensors").touch()
    report = card_of_folder(folder).report
    before = report.save(folder).read_bytes()
    with staged(folder) as stage:
        names = {path.relative_to(stage).as_posix() for path in stage.rglob("*") if path.is_file()}
        replace(report, target_sparsity=0.1).save(stage)
        RunRecord(1, 1, 1).save(stage)
    own = {"config.json", "model.safetensors", "pruning_config.json", "trainer_state.json"}
    assert names == {*own, "sparsity_report.json", "notes.txt", "runs/one/events"}
    assert not (folder / "pruning_run.json").exists(), "the folder itself is not changed"
    assert (folder / "sparsity_report.json").read_bytes() == before


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
