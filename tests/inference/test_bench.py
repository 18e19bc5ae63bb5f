"""`hf-cyclprune bench` measures and says where."""

import json
import sys

import pytest
import torch
from transformers import BertConfig, BertForMultipleChoice, RobertaConfig, RobertaModel

from hf_cyclprune import PruningConfig, pack, prune_
from hf_cyclprune.cli import main
from hf_cyclprune.inference import accelerate, runtimes
from hf_cyclprune.inference import bench as module
from hf_cyclprune.inference.bench import bench
from hf_cyclprune.inference.csr import CsrLinear, replace_by_csr
from hf_cyclprune.inference.graphs import Outputs, make_batch
from hf_cyclprune.inference.runtimes import build_runtime
from hf_cyclprune.inference.timings import load_bench
from hf_cyclprune.packing.weights import fingerprint


@pytest.fixture
def folder(tiny_bert, tmp_path):
    model = tiny_bert()
    prune_(model, PruningConfig(sparsity=0.9))
    model.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def _all_sparse(monkeypatch):
    """So small a model is faster dense."""
    measured = module.accelerate_
    monkeypatch.setattr(module, "accelerate_", lambda model, **_: measured(model, measure=False))


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Two rounds, and a runtime that is there and one that is not in the place of the others."""

    def broken(*_):
        raise RuntimeError("it is not installed\nTraceback")

    known = {"here": lambda outputs, *_: lambda batch: outputs(**batch), "away": broken}
    monkeypatch.setattr(runtimes, "RUNTIMES", {**runtimes.RUNTIMES, **known})
    monkeypatch.setattr(module, "RUNTIMES", known)
    monkeypatch.setattr(module, "_ROUNDS", 2)


@pytest.mark.usefixtures("_all_sparse")
def test_it_times_every_runtime_that_is_there(folder):
    before = torch.get_num_threads()
    result = bench(folder, batch_size=2, seq_length=8, num_threads=2)
    assert [timing.name for timing in result.timings] == ["dense", "sparse", "here"]
    assert all(0 < t.low <= t.median <= t.high for t in result.timings)
    assert result.missing == {"away": "it is not installed"}
    assert (result.batch_size, result.seq_length, result.num_threads) == (2, 8, 2)
    assert torch.get_num_threads() == before
    assert result.fingerprint == fingerprint(folder)
    assert result.versions["torch"] == torch.__version__


def test_a_model_that_is_faster_dense_has_no_time_for_sparse(folder, monkeypatch):
    monkeypatch.setattr(accelerate, "_is_faster", lambda *_: False)
    result = bench(folder, seq_length=8)
    assert [timing.name for timing in result.timings] == ["dense", "here"]
    assert result.missing["sparse"] == "accelerate_ left all layers dense"
    assert result.layers.startswith("0 Linear layers are sparse now, 14 stayed dense.\n")


def test_a_packed_model_is_timed_as_the_same_weights(folder, tmp_path):
    pack(folder, tmp_path / "packed")
    packed = bench(str(tmp_path / "packed"), seq_length=8)
    assert packed.fingerprint == fingerprint(folder)


def test_torchs_own_sparse_matrices_give_the_same_answers(tiny_bert):
    model = tiny_bert()
    with pytest.raises(ValueError, match="no layer of the class Linear has half zeros or more"):
        replace_by_csr(model)
    prune_(model, PruningConfig(sparsity=0.9))
    outputs = Outputs(model)
    batch = make_batch(model, 3, 7, padding=2)
    run = build_runtime("torch CSR", model, batch, 1, None)
    with torch.inference_mode():
        torch.testing.assert_close(run(), outputs(**batch))
    assert len([m for m in replace_by_csr(model).modules() if isinstance(m, CsrLinear)]) == 12
    assert not any(isinstance(module, CsrLinear) for module in model.modules())


def test_the_command_writes_the_times_and_their_picture(folder, tmp_path, capsys, monkeypatch):
    out, argv = tmp_path / "new", ["bench", folder, "--seq_length", "8", "--threads", "1"]
    assert main([*argv, "--output_dir", str(out)]) == 0
    assert capsys.readouterr().out.endswith(
        f"\n\n{out}/inference_times.json\n{out}/inference_times.png\n"
    )
    assert (out / "inference_times.png").read_bytes().startswith(b"\x89PNG")
    assert load_bench(out).model == folder
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "hf_cyclprune.pictures.plots", raising=False)
    assert main([*argv, "--output_dir", str(tmp_path / "other"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == load_bench(tmp_path / "other").to_dict()
    assert 'pip install "hf_cyclprune[plots]"' in err


def test_the_command_prints_a_table_or_json_with_the_name_of_the_cpu(folder, capsys):
    assert main(["bench", folder, "--seq_length", "8", "--threads", "1"]) == 0
    table = capsys.readouterr().out
    assert table.startswith(f"{folder} on {module._processor()}, threads: 1, batch: 1 x 8 tokens\n")
    assert "away               no time: it is not installed" in table
    assert main(["bench", folder, "--seq_length", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["processor"] == module._processor() != ""
    assert found["timings"][0]["name"] == "dense"


def test_wrong_numbers_are_refused_before_the_model_loads(folder, capsys):
    assert main(["bench", "nowhere", "--batch_size", "0"]) == 1
    assert "batch_size must be an integer >= 1; got 0" in capsys.readouterr().err
    assert main(["bench", folder]) == 1
    assert "seq_length must be at most 16 for this model; got 128" in capsys.readouterr().err
    assert main(["bench", folder, "--output_dir", f"{folder}/config.json/x"]) == 1
    assert "output_dir must be a folder that can be written to" in capsys.readouterr().err


def test_a_model_with_fewer_positions_than_its_config_says_is_one_sentence(tmp_path, capsys):
    """RoBERTa counts its positions from 2."""
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = RobertaConfig(vocab_size=4000, max_position_embeddings=34, **size)
    RobertaModel(config).save_pretrained(tmp_path)
    assert main(["bench", str(tmp_path), "--seq_length", "34"]) == 1
    assert (
        "seq_length must be a length that the model can read; got 34: " in capsys.readouterr().err
    )
    assert main(["bench", str(tmp_path), "--seq_length", "32"]) == 0


def test_a_model_that_reads_something_else_is_one_sentence(tmp_path, capsys):
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertForMultipleChoice(BertConfig(vocab_size=40, **size)).save_pretrained(tmp_path)
    assert main(["bench", str(tmp_path), "--seq_length", "8"]) == 1
    error = capsys.readouterr().err
    assert f"MODEL must turn tokens into logits or hidden states; got '{tmp_path}': " in error
