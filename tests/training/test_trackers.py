"""Trackers receive the sparsity and the cycles, read back from what they wrote."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.integrations.integration_utils import rewrite_logs

from hf_cyclprune import PruningConfig, PruningTrainer

# Summaries of the run, which the tracker's callback leaves out of its curves.
SUMMARIES = (
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "train_loss",
    "total_flos",
)
SHARES = ("recovered_share_at_edge", "recovered_share_at_end", "mask_change")


def curves(log_history, skip=()):
    """Return {name in a tracker: [(step, value), ...]} of all that was logged."""
    points = {}
    for entry in log_history:
        values = {k: v for k, v in entry.items() if k != "step" and k not in skip}
        for name, value in rewrite_logs(values).items():
            points.setdefault(name, []).append((entry["step"], value))
    return points


def check_that_pruning_is_in(points):
    """The names that a user looks for, at the ends of 4 cycles of 10 steps."""
    ends = [10, 20, 30, 40]
    for name in SHARES:
        assert [step for step, _ in points[f"train/{name}"]] == ends[1:]
    for name in ("sparsity", "cycle"):
        assert {*ends, 7, 14, 21, 28, 35} <= {step for step, _ in points[f"train/{name}"]}
    assert [step for step, _ in points["eval/loss"]] == ends
    assert dict(points["train/cycle"])[28] == 3


def test_tensorboard_receives_every_value_at_its_step(train, tmp_path, monkeypatch):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    config = PruningConfig("cyclical", sparsity=0.8, num_cycles=4, eval_cycle_ends=True)
    args = {"report_to": ["tensorboard"], "logging_steps": 7}
    trainer = train(PruningTrainer, args=args, pruning_config=config)
    (folder,) = {path.parent for path in tmp_path.rglob("events.out.tfevents.*")}
    events = event_accumulator.EventAccumulator(str(folder)).Reload()
    found = {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }
    expected = curves(trainer.state.log_history)
    assert found.keys() == expected.keys()
    for name, points in expected.items():
        assert [step for step, _ in found[name]] == [step for step, _ in points], name
        values = [value for _, value in points]
        assert [value for _, value in found[name]] == pytest.approx(values, rel=1e-6), name
    check_that_pruning_is_in(found)


SCRIPT = """
import json
import torch
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments
from hf_cyclprune import PruningConfig, PruningTrainer

torch.set_num_threads(1)
model = BertForSequenceClassification(BertConfig(
    vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=1,
    intermediate_size=16, max_position_embeddings=8,
))
rows = [{"input_ids": torch.arange(4), "labels": i % 2} for i in range(16)]
args = TrainingArguments(
    "out", use_cpu=True, max_steps=40, per_device_train_batch_size=2, save_strategy="no",
    logging_steps=7, learning_rate=1e-2,
    report_to=["trackio"], project="pruning", run_name="one", trackio_space_id=None,
)
config = PruningConfig("cyclical", sparsity=0.8, num_cycles=4, eval_cycle_ends=True)
trainer = PruningTrainer(
    model, args, train_dataset=rows, eval_dataset=rows, pruning_config=config
)
trainer.train()
with open("log_history.json", "w") as file:
    json.dump(trainer.state.log_history, file)
"""


def test_trackio_receives_every_value_at_its_step(tmp_path):
    """Runs in a process of its own, for its threads; without a Space it needs no network."""
    pytest.importorskip("trackio")
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "HF_HUB_OFFLINE": "1",
    }
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(tmp_path / "trackio" / "pruning.db") as database:
        rows = database.execute("SELECT metrics FROM metrics WHERE run_name = 'one' ORDER BY id")
        received = [json.loads(metrics) for (metrics,) in rows]
    found = {}
    for values in received:
        step = values.pop("train/global_step")
        for name, value in values.items():
            found.setdefault(name, []).append((step, value))
    log_history = json.loads((tmp_path / "log_history.json").read_text())
    expected = curves(log_history, skip=SUMMARIES)
    assert {name: found.get(name) for name in expected} == expected
    check_that_pruning_is_in(found)
