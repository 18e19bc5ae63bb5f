"""Code that lies in a model's folder never runs, whatever a command does with the folder."""

import json

import pytest

from hf_cyclprune import PruningConfig, PruningTrainer, load_packed, pack
from hf_cyclprune.cli import main

MODULE = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
from transformers import BertConfig as Config, BertForSequenceClassification as Model
"""


@pytest.fixture
def planted(train, tmp_path, monkeypatch):
    """Builds a pruned model's folder, dense or packed, with a module that its config names."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a person was asked"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))

    def plant(model_type, is_packed):
        folder = tmp_path / "dense"
        config = PruningConfig(sparsity=0.8, num_cycles=2)
        train(PruningTrainer, pruning_config=config, args={"max_steps": 6}).save_model(folder)
        if is_packed:
            pack(folder, tmp_path / "packed")
            folder = tmp_path / "packed"
        (folder / "planted.py").write_text(MODULE)
        values = json.loads((folder / "config.json").read_text())
        values |= {"model_type": model_type, "auto_map": {"AutoConfig": "planted.Config"}}
        for auto in ("AutoModel", "AutoModelForSequenceClassification"):
            values["auto_map"][auto] = "planted.Model"
        if model_type != "bert":
            del values["architectures"]
        (folder / "config.json").write_text(json.dumps(values))
        return folder

    return plant


def ran(tmp_path):
    return [str(path) for path in tmp_path.rglob("ran")]


COMMANDS = {
    "report": "report {folder}",
    "verify": "verify {folder} {folder}",
    "pack": "pack {folder} {out}",
    "unpack": "unpack {folder} {out}",
    "plot": "plot {folder} --output_dir {out}",
    "push": "push {folder} user/name",
    "bench": "bench {folder} --seq_length 8 --output_dir {out}",
    "export": "export {folder} {out}",
    "glue": "glue --task_name sst2 --model_name_or_path {folder} --do_eval --output_dir {out}",
}


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("model_type", ["bert", "planted"])
@pytest.mark.parametrize("verb", COMMANDS)
def test_no_command_runs_it(planted, tmp_path, capsys, monkeypatch, verb, model_type, is_packed):
    monkeypatch.setattr("hf_cyclprune.inference.bench.RUNTIMES", {})  # compilers take long
    monkeypatch.setattr("hf_cyclprune.inference.export.FORMATS", {"onnx": ()})
    monkeypatch.setattr("hf_cyclprune.inference.export.write_onnx", lambda *_: None)
    folder, out = planted(model_type, is_packed), tmp_path / "out2"
    before = sorted(folder.rglob("*"))
    code = main(COMMANDS[verb].format(folder=folder, out=out).split())
    assert ran(tmp_path) == []
    assert sorted(folder.rglob("*")) == before
    reads_model = verb not in ("plot", "verify") or (verb == "verify" and is_packed)
    if model_type == "planted" and reads_model:
        assert code == 1
        assert not out.exists()
        assert "Traceback" not in capsys.readouterr().err


def test_packing_says_why_it_refuses(planted, tmp_path):
    folder = planted("planted", is_packed=False)
    with pytest.raises(ValueError, match=r"transformers does not know the model .* never run"):
        pack(folder, tmp_path / "out2")


def test_loading_packed_weights_does_not_run_it(planted, tmp_path):
    assert load_packed(planted("bert", is_packed=True)).config.model_type == "bert"
    assert ran(tmp_path) == []
