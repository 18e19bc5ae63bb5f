"""Runs and reports as a Trainer leaves them."""

import json

from hf_cyclprune.config import PruningConfig
from hf_cyclprune.config_file import save_config
from hf_cyclprune.reporting.cycles import CycleReport
from hf_cyclprune.reporting.report import SparsityReport
from hf_cyclprune.reporting.run import Run, RunRecord
from hf_cyclprune.reporting.weights import WeightReport

BERT = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)


CYCLES = (
    CycleReport(1, 10, 0.5),
    CycleReport(2, 20, 0.5, 11, 0.25, 0.0, 0.0625),
    CycleReport(3, 30, 0.5, None, None, 0.00001, 0.5),
)


CYCLICAL = PruningConfig("cyclical", sparsity=0.8, num_cycles=4)


def log(config, total_steps, every=10, evaluate=20):
    """What a Trainer would have logged."""
    entries = []
    for t in range(every, total_steps + 1, every):
        own = {}
        if config is not None:
            schedule = config.build_schedule(total_steps)
            own = {"sparsity": schedule.sparsity_at(t), "cycle": schedule.cycle(t) + 1}
        entries.append({"step": t, "loss": 1 / t, "learning_rate": 3e-4 / t, **own})
        if t % evaluate == 0:
            entries.append({"step": t, "eval_accuracy": 0.8 + t / 10000, "eval_loss": 0.5, **own})
    entries.append({"step": total_steps, "train_runtime": 1.0})
    return entries


def run_of(name, config=None, report=None, **record):
    """A run with these fields of its record."""
    return Run(name, config, report, RunRecord(**record))


def make_run(name="a", config=None, total_steps=200, **options):
    """A run with the logs of a Trainer."""
    history = log(config, total_steps, **options)
    return run_of(name, config, log_history=history, total_steps=total_steps)


def make_report(layers=2, kinds=BERT, zeros=lambda layer, kind: 80 - layer, cycles=()):
    weights = [
        WeightReport(f"x.{n}.{kind}.weight", n, kind, (10, 10), zeros(n, i), ())
        for n in range(layers)
        for i, kind in enumerate(kinds)
    ]
    return SparsityReport(tuple(weights), tuple(cycles))


def save_run(folder, run):
    """A folder as transformers and we write it."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {"log_history": run.record.log_history, "max_steps": run.record.total_steps}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    if run.config is not None:
        save_config(run.config, folder)
    if run.report is not None:
        run.report.save(folder)
    return folder
