import json
import subprocess
import sys

import pytest

from hf_cyclprune import METHODS, PruningConfig, PruningTrainer
from hf_cyclprune.cli import main


@pytest.fixture
def saved(train, tmp_path):
    config = PruningConfig(sparsity=0.8, num_cycles=2)
    trainer = train(PruningTrainer, pruning_config=config)
    trainer.save_model(tmp_path / "saved")
    return tmp_path / "saved"


def test_report_counts_the_zeros_and_shows_the_cycles(saved, capsys):
    assert main(["report", str(saved)]) == 0
    printed = capsys.readouterr().out
    assert "sparsity 80.0049%: 3,277 zeros in 4,096 target weights of 12 matrices" in printed
    assert "not at the target" not in printed
    assert "attention.self.query" in printed
    assert "recovered at edge" in printed


def test_report_prints_json_on_request(saved, capsys):
    assert main(["report", str(saved), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["num_zeros"] == 3277
    assert [cycle["cycle"] for cycle in report["cycles"]] == [1, 2]


def test_report_measures_a_model_that_was_never_pruned(tiny_bert, tmp_path, capsys):
    tiny_bert().save_pretrained(tmp_path)
    assert main(["report", str(tmp_path)]) == 0
    assert "0 zeros in 4,096" in capsys.readouterr().out


def test_a_folder_without_a_model_is_one_clear_line(tmp_path):
    command = [sys.executable, "-m", "hf_cyclprune.cli", "report", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line == (
        f"hf-cyclprune: error: There is no config.json in '{tmp_path}'. Pass a folder that holds a "
        "saved model."
    )


def test_torn_weights_are_one_clear_line(saved, capsys):
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert main(["report", str(saved)]) == 1
    assert "are not those of the model in its config.json" in capsys.readouterr().err


def test_plot_draws_one_run_or_compares_several(saved, train, tmp_path, capsys):
    out = tmp_path / "pictures"
    capsys.readouterr()
    assert main(["plot", str(saved), "--output_dir", str(out)]) == 0
    names = ["schedule.png", "density.png", "recovery.png"]
    assert capsys.readouterr().out.split() == [str(out / name) for name in names]
    other = train(PruningTrainer, pruning_config=PruningConfig(pattern="2:4", num_cycles=1))
    other.save_model(tmp_path / "other")
    capsys.readouterr()
    assert main(["plot", str(saved), str(tmp_path / "other"), "--output_dir", str(out)]) == 0
    assert capsys.readouterr().out.split() == [str(out / "comparison.png")]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in out.iterdir())
    assert len(list(out.iterdir())) == 4


def test_plot_without_matplotlib_names_the_extra(saved, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "hf_cyclprune.pictures.plots", raising=False)
    assert main(["plot", str(saved)]) == 1
    assert 'pip install "hf_cyclprune[plots]"' in capsys.readouterr().err


def test_methods_lists_every_method_with_its_paper_and_settings(capsys):
    assert main(["methods"]) == 0
    printed = capsys.readouterr().out
    for name, method in METHODS.items():
        assert f"{name}: {method.title}" in printed
        assert method.paper is None or method.paper.url in printed
        for field, value in method.settings.items():
            assert f"{field}={value!r}" in printed


def test_glue_without_its_packages_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "evaluate", None)
    for name in ("hf_cyclprune.glue.run", "hf_cyclprune.glue.metrics"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert main(["glue", "--help"]) == 1
    assert "'evaluate' is not installed. Run `pip install" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["demo", "plot ."])
def test_a_folder_that_cannot_be_written_to_is_refused_before_the_work(verb, tmp_path, capsys):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    assert main([*verb.split(), "--output_dir", str(out)]) == 1
    line = f"output_dir must be a folder that can be written to; got '{out}': Not a directory."
    assert line in capsys.readouterr().err
