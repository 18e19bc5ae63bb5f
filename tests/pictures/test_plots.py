import os
import sys

import pytest

from hf_cyclprune.config import PruningConfig
from hf_cyclprune.pictures.curves import draw_schedule
from hf_cyclprune.pictures.plots import plot_runs, save_pictures
from hf_cyclprune.reporting.folder import read_run
from hf_cyclprune.training.trainer import PruningTrainer
from tests.pictures.figures import labelled
from tests.reporting.runs import CYCLES, CYCLICAL, make_report, make_run, run_of, save_run


def test_one_run_gives_the_pictures_that_it_has_something_for(tmp_path):
    run = make_run(config=CYCLICAL)
    full = save_run(
        tmp_path / "full",
        run_of("", CYCLICAL, make_report(cycles=CYCLES), log_history=run.record.log_history),
    )
    dense = save_run(tmp_path / "dense", make_run())
    out = tmp_path / "out" / "new"
    assert save_pictures(full, out) == {
        name: out / f"{name}.png" for name in ("schedule", "density", "recovery")
    }
    assert plot_runs([dense], tmp_path / "other") == [tmp_path / "other" / "schedule.png"]


def test_several_runs_give_their_comparison(tmp_path):
    runs = [save_run(tmp_path / name / "out", make_run(config=CYCLICAL)) for name in "ab"]
    dense = save_run(tmp_path / "dense", make_run())
    (path,) = plot_runs([*runs, str(dense)], tmp_path / "pictures")
    assert path == tmp_path / "pictures" / "comparison.png"
    assert os.listdir(path.parent) == ["comparison.png"]


@pytest.mark.parametrize("name", ["missing", "."])
def test_a_folder_without_a_run_is_an_error(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds no run: it has no logs .* Pass the outp"):
        plot_runs([tmp_path / name], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_run_and_a_run_given_twice_are_errors(tmp_path):
    with pytest.raises(ValueError, match=r"^No RUN is given\."):
        plot_runs([], tmp_path)
    with pytest.raises(ValueError, match=r"^The run .* is given twice\."):
        plot_runs([tmp_path, tmp_path / "x" / ".."], tmp_path)


def test_logs_with_nothing_to_draw_are_an_error(tmp_path):
    save_run(tmp_path / "run", run_of("a", log_history=[{"step": 3, "train_runtime": 1.0}]))
    with pytest.raises(ValueError, match="There is nothing to draw in"):
        plot_runs([tmp_path / "run"], tmp_path / "out")


def test_without_matplotlib_the_error_says_how_to_get_it(monkeypatch):
    for name in [n for n in sys.modules if n.startswith("hf_cyclprune.pictures.plots")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        ValueError, match=r"Pictures need matplotlib, .* Run `pip install \"hf_cyclprune\[pl"
    ):
        import hf_cyclprune.pictures.plots  # noqa: F401


def test_what_a_trainer_leaves_can_be_drawn(train, tmp_path):
    args = {"eval_strategy": "steps", "eval_steps": 10}
    trainer = train(
        PruningTrainer, args=args, pruning_config=PruningConfig(sparsity=0.5, num_cycles=2)
    )
    trainer.save_state()
    trainer.save_model()
    folder = tmp_path / "out"
    run = read_run(folder)
    assert run.points("eval_loss") == [
        (e["step"], e["eval_loss"]) for e in trainer.state.log_history if "eval_loss" in e
    ]
    assert run.report == trainer.sparsity_report()
    sparsity, loss, _ = draw_schedule(run).axes
    counted = dict(labelled(sparsity, "counted"))
    assert counted[40] == 100 * run.sparsity == 50
    assert loss.get_ylabel() == "evaluation\nloss"
    assert [p.name for p in plot_runs([folder], tmp_path / "pictures")] == [
        "schedule.png",
        "density.png",
        "recovery.png",
    ]
