import sys
from io import StringIO

import pytest

pytest.importorskip("datasets", reason="the extra demo is not installed")

from datasets.utils import are_progress_bars_disabled, enable_progress_bars
from transformers.utils import logging

from hf_cyclprune.cli import main
from hf_cyclprune.demo import run
from hf_cyclprune.demo.model import find_model
from hf_cyclprune.reporting.folder import report_folder


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    try:
        find_model()
    except ValueError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(run, "NUM_TRAIN", 64)
    monkeypatch.setattr(run, "NUM_VALIDATION", 40)


def test_the_demo_prunes_saves_and_reloads_the_real_model(tmp_path, capsys):
    dense, pruned, reloaded = run.run_demo(str(tmp_path / "kept"), num_steps=4)
    assert dense.sparsity == 0
    assert pruned.sparsity == pytest.approx(0.8, abs=1e-6)
    assert (reloaded.accuracy, reloaded.sparsity) == (pruned.accuracy, pruned.sparsity)
    assert report_folder(tmp_path / "kept").num_zeros == 4_246_733
    printed, bars = capsys.readouterr()
    assert not bars, "stderr is no terminal"
    assert printed.count("80.0000%") == 3
    assert "recovered at edge" in printed


def test_a_terminal_shows_a_bar_of_the_steps_and_then_removes_it(monkeypatch):
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = run._Bar("dense", 4)
    bar.on_train_begin()
    bar.on_step_end()
    assert "dense:" in sys.stderr.getvalue()
    assert "0/4" in sys.stderr.getvalue()
    bar.on_train_end()
    assert not sys.stderr.getvalue().rpartition("\r")[0].rpartition("\r")[2].strip()


def test_the_demo_leaves_the_process_as_talkative_as_it_was(monkeypatch):
    monkeypatch.setattr(run, "make_task", lambda *sizes: 1 / 0)
    enable_progress_bars()  # which another test may have disabled
    found = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    with pytest.raises(ZeroDivisionError):
        run.run_demo()
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == found
    assert not are_progress_bars_disabled()


def test_the_demo_does_not_write_over_files(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["demo", "--output_dir", str(tmp_path)]) == 1
    assert "output_dir must be new or empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
