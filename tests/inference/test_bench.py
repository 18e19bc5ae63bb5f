"""`hf-cyclprune bench` measures and says where."""

import json

import pytest
import torch

from hf_cyclprune import PruningConfig, prune_
from hf_cyclprune.cli import main
from hf_cyclprune.inference import bench as module
from hf_cyclprune.inference import runtimes
from hf_cyclprune.inference.bench import bench


@pytest.fixture
def folder(tiny_bert, tmp_path):
    model = tiny_bert()
    prune_(model, PruningConfig(sparsity=0.9))
    model.save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Two rounds, and a runtime that is there and one that is not in the place of the others."""

    def broken(*_):
        raise RuntimeError("it is not installed\nTraceback")

    known = {"here": lambda model, batch, *_: lambda: model(**batch), "away": broken}
    monkeypatch.setattr(runtimes, "RUNTIMES", known)
    monkeypatch.setattr(module, "RUNTIMES", known)
    monkeypatch.setattr(module, "_ROUNDS", 2)


def test_it_times_every_runtime_that_is_there(folder):
    before = torch.get_num_threads()
    result = bench(folder, batch_size=2, seq_length=8, num_threads=2)
    assert [timing.name for timing in result.timings] == ["dense", "sparse", "here"]
    assert all(0 < t.low <= t.median <= t.high for t in result.timings)
    assert result.missing == {"away": "it is not installed"}
    assert (result.batch_size, result.seq_length, result.num_threads) == (2, 8, 2)
    assert torch.get_num_threads() == before


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
