import json
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_plain_loop_ends_at_the_exact_sparsity():
    report = runpy.run_path(str(EXAMPLES / "plain_loop.py"))["main"]()
    assert report.is_at_target
    assert {round(weight.sparsity, 2) for weight in report.weights} == {0.9}


def test_the_loop_with_accelerate_ends_at_the_exact_sparsity():
    pruner = runpy.run_path(str(EXAMPLES / "accelerate_loop.py"))["main"]()
    zeros = {name: int((weight == 0).sum()) for name, weight in pruner.targets.items()}
    assert pruner.is_at_target
    assert sum(zeros.values()) == sum(pruner.num_pruned)
    assert pruner.sparsity == pytest.approx(0.9, abs=1e-4)


def test_the_callback_makes_a_stock_trainer_end_at_2_of_4():
    report = runpy.run_path(str(EXAMPLES / "stock_trainer.py"))["main"](max_steps=30)
    assert report.patterns == ("2:4", "4:8")
    assert report.num_zeros * 2 == report.num_weights


def test_every_cell_of_the_notebook_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cells = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    code = "\n".join(sources).replace("NUM_STEPS = 120", "NUM_STEPS = 4")
    exec(compile(code, "quickstart.ipynb", "exec"), {})
    printed = capsys.readouterr().out
    assert "the same weights: True" in printed
    assert "sparsity 80.00" in printed
