"""A cycle that has ended shows in the console, in the logs and in the report."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.utils import logging

from hf_cyclprune import PruningCallback, PruningConfig, PruningTrainer, prune_
from hf_cyclprune.training.cycle_log import show_line
from hf_cyclprune.training.state import load_state

CONFIG = PruningConfig(sparsity=0.8, num_cycles=2, lr_restarts=False)  # 40 steps: ends at 20, 40
EVALUATED = PruningConfig(sparsity=0.8, num_cycles=2, eval_cycle_ends=True, lr_restarts=False)
KINDS = ("trainer", "callback")
SHARES = {"recovered_share_at_edge", "recovered_share_at_end", "mask_change"}


def accuracy(prediction):
    hits = prediction.predictions.argmax(-1) == prediction.label_ids
    return {"accuracy": float(hits.mean()), "undefined": float("nan")}


@pytest.fixture
def run(train):
    """Trains with our Trainer, or with the callback in the stock one."""

    def start(kind, config=CONFIG, args=None, callbacks=(), **options):
        own = {"cls": PruningTrainer, "pruning_config": config, "callbacks": [*callbacks]}
        stock = {"cls": Trainer, "callbacks": [PruningCallback(config), *callbacks]}
        options = {"compute_metrics": accuracy, **options, **(own if kind == "trainer" else stock)}
        return train(args=args, **options)

    return start


def report_of(trainer):
    (callback,) = (c for c in trainer.callback_handler.callbacks if isinstance(c, PruningCallback))
    return callback.report(trainer.model)


def logged(trainer, name):
    """Return {step: entry} of the log entries that hold a value of this name."""
    return {entry["step"]: entry for entry in trainer.state.log_history if name in entry}


def cycle_lines(text):
    return [line for line in text.splitlines() if "cycle " in line and "{" not in line]


@pytest.mark.parametrize("kind", KINDS)
def test_the_console_shows_one_line_for_each_cycle_with_the_numbers_of_the_report(
    run, kind, capsys
):
    trainer = run(kind, EVALUATED)
    first, second = report_of(trainer).cycles
    one, two = (
        f"sparsity {cycle.sparsity:.2%}, eval_accuracy {cycle.metrics['eval_accuracy']:.4f}"
        for cycle in (first, second)
    )
    assert cycle_lines(capsys.readouterr().out) == [
        f"cycle 1 of 2 ended at step 20: {one}",
        f"cycle 2 of 2 ended at step 40: {two}; recovered "
        f"{second.recovered_share_at_edge:.2%} at the edge, {second.recovered_share_at_end:.2%} at "
        f"the end; mask changed by {second.mask_change:.2%}",
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", ["epoch", "steps"])
def test_the_line_follows_the_evaluation_and_precedes_what_comes_next(run, kind, strategy, capsys):
    """16 steps are an epoch, and here a cycle: its evaluation comes after the step's own end."""
    args = {"eval_strategy": strategy, "eval_steps": 16, "max_steps": 32, "logging_steps": 1}
    trainer = run(kind, args=args)
    lines = capsys.readouterr().out.splitlines()
    for place, cycle in zip(
        (i for i, line in enumerate(lines) if line.startswith("cycle ")),
        report_of(trainer).cycles,
        strict=True,
    ):
        assert "'eval_accuracy'" in lines[place - 1]
        assert f"eval_accuracy {cycle.metrics['eval_accuracy']:.4f}" in lines[place]
        assert ("'loss'" if cycle.cycle == 1 else "'train_loss'") in lines[place + 1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_one_cycle_shows_one_line_at_its_end_and_nothing_of_recovery(run, kind, capsys):
    run(kind, PruningConfig(sparsity=0.8, num_cycles=1))
    (line,) = cycle_lines(capsys.readouterr().out)
    assert line == "cycle 1 of 1 ended at step 40: sparsity 80.00%"


def test_a_second_run_shows_its_lines_again(run, capsys):
    trainer = run("trainer")
    capsys.readouterr()
    trainer.train()
    assert len(cycle_lines(capsys.readouterr().out)) == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "args", [{"log_level": "error"}, {"log_level": "critical"}, {"logging_strategy": "no"}]
)
def test_who_wants_silence_gets_it(run, kind, args, capsys):
    run(kind, args=args)
    assert not cycle_lines(capsys.readouterr().out)


def test_the_verbosity_of_transformers_counts_too(run, capsys):
    class Hush(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            logging.set_verbosity_error()

    run("trainer", callbacks=[Hush()])
    assert not cycle_lines(capsys.readouterr().out)


def test_only_the_first_process_shows_a_line(arguments, capsys):
    args = TrainingArguments(**arguments())
    for is_first in (False, True):
        show_line("cycle 1", args, TrainerState(is_world_process_zero=is_first))
        assert capsys.readouterr().out == ("cycle 1\n" if is_first else "")


def test_where_there_are_no_cycles_nothing_is_shown(train, run, tiny_bert, capsys):
    train(PruningTrainer)
    model = tiny_bert()
    prune_(model, PruningConfig(sparsity=0.8))
    for kind in KINDS:
        run(kind, PruningConfig(method="hold"), model=model)
    assert not cycle_lines(capsys.readouterr().out)


SCRIPT = """
import torch
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments
from hf_cyclprune import PruningConfig, PruningTrainer

torch.set_num_threads(1)
model = BertForSequenceClassification(BertConfig(
    vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=1,
    intermediate_size=16, max_position_embeddings=8,
))
rows = [{"input_ids": torch.arange(4), "labels": i % 2} for i in range(32)]
args = TrainingArguments(
    "out", use_cpu=True, max_steps=40, per_device_train_batch_size=2, save_strategy="no",
    report_to=[], per_device_eval_batch_size=2, logging_steps=7,
)
config = PruningConfig("cyclical", sparsity=0.8, num_cycles=4, eval_cycle_ends=True)
PruningTrainer(model, args, train_dataset=rows, eval_dataset=rows, pruning_config=config).train()
"""


def test_the_lines_do_not_tear_the_progress_bar(tmp_path):
    """In a terminal each line stands alone, and the bar below goes on to its end."""
    pty = pytest.importorskip("pty")
    (tmp_path / "script.py").write_text(SCRIPT)
    # tqdm shows nothing on a terminal without rows.
    command = f"stty rows 50 cols 300; exec {sys.executable} script.py"
    hidden = ("TQDM_DISABLE", "TRANSFORMERS_VERBOSITY")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["sh", "-c", command],
        cwd=tmp_path,
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        close_fds=True,
    )
    os.close(theirs)
    rows = screen(read_all(ours))
    assert process.wait() == 0, rows
    lines = [row for row in rows if "cycle " in row and "{" not in row]
    assert [re.sub(r"(eval_loss) .*", r"\1", line) for line in lines] == [
        f"cycle {c} of 4 ended at step {10 * c}: sparsity {0.8008:.2%}, eval_loss"
        for c in range(1, 5)
    ], rows
    bars = [row for row in rows if "%|" in row]
    assert len(bars) == 1, rows
    assert re.match(r"100%\|.*\| 40/40 \[", bars[0])


def read_all(terminal):
    text = b""
    try:
        while chunk := os.read(terminal, 65536):
            text += chunk
    except OSError:  # how Linux ends a terminal
        pass
    os.close(terminal)
    return text.decode()


def screen(text):
    """Return the rows that a terminal shows in the end."""
    rows, y, x = [""], 0, 0
    for token in re.findall(r"\x1b\[\d*[A-Za-z]|[^\x1b]", text):
        if token == "\x1b[A":
            y = max(0, y - 1)
        elif token == "\n":
            y += 1
            rows += [""] * (y + 1 - len(rows))
        elif token == "\r":
            x = 0
        elif len(token) == 1:
            row = rows[y].ljust(x + 1)
            rows[y] = row[:x] + token + row[x + 1 :]
            x += 1
    return [row.rstrip() for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_the_evaluation_at_a_cycles_end_reaches_the_report(run, kind):
    args = {"eval_strategy": "steps", "eval_steps": 5}
    trainer = run(kind, args=args)
    report = report_of(trainer)
    evaluations = logged(trainer, "eval_loss")
    assert sorted(evaluations) == list(range(5, 45, 5))
    for cycle in report.cycles:
        entry = evaluations[cycle.end_step]
        assert cycle.metrics == {name: entry[name] for name in ("eval_loss", "eval_accuracy")}
        assert f"{entry['eval_accuracy']:.4f}" in str(report)
    assert " accuracy " in str(report)


def test_it_is_in_the_json_beside_the_model_which_is_valid(run, tmp_path):
    trainer = run("trainer", EVALUATED)
    trainer.save_model(tmp_path / "saved")
    text = (tmp_path / "saved" / "sparsity_report.json").read_text()
    values = json.loads(text, parse_constant=pytest.fail)
    expected = [cycle.metrics for cycle in trainer.sparsity_report().cycles]
    assert [cycle["metrics"] for cycle in values["cycles"]] == expected
    assert all(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_elsewhere_or_after_training_is_none_of_a_cycle(run, kind):
    trainer = run(kind, args={"eval_strategy": "steps", "eval_steps": 19})
    is_last_evaluated = 40 in logged(trainer, "eval_loss")  # transformers 5.23 adds it
    before = [cycle.metrics for cycle in report_of(trainer).cycles]
    assert [bool(metrics) for metrics in before] == [False, is_last_evaluated]
    trainer.evaluate(trainer.eval_dataset[:8])
    assert [cycle.metrics for cycle in report_of(trainer).cycles] == before


@pytest.mark.parametrize("kind", KINDS)
def test_of_several_data_sets_all_values_are_kept(run, kind, examples, capsys):
    trainer = run(kind, EVALUATED, eval_dataset={"a": examples, "b": examples[:10]})
    (_, line) = cycle_lines(capsys.readouterr().out)
    for cycle in report_of(trainer).cycles:
        assert list(cycle.metrics) == [
            f"eval_{name}_{value}" for name in "ab" for value in ("loss", "accuracy")
        ]
    assert re.search(r"%, eval_a_accuracy \d\.\d{4}, eval_b_accuracy \d\.\d{4}; recovered", line)


def test_the_evaluations_survive_a_checkpoint_of_that_very_step(run, tmp_path):
    class Interrupt(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            raise ConnectionAbortedError

    whole = run("trainer", EVALUATED).sparsity_report()
    args = {"save_strategy": "steps", "save_steps": 20}
    with pytest.raises(ConnectionAbortedError):
        run("trainer", EVALUATED, args, callbacks=[Interrupt()])
    saved = load_state(tmp_path / "out" / "checkpoint-20")
    assert saved.history["cycles"][0]["metrics"] == whole.cycles[0].metrics
    assert whole.cycles[0].metrics
    resumed = run("trainer", EVALUATED, args, resume=True).sparsity_report()
    assert [cycle.metrics for cycle in resumed.cycles] == [c.metrics for c in whole.cycles]


def test_the_log_entry_of_a_cycles_end_holds_its_shares_and_no_other_does(run):
    args = {"logging_steps": 7, "eval_strategy": "steps", "eval_steps": 10}
    trainer = run("trainer", PruningConfig("cyclical", sparsity=0.8, num_cycles=4), args=args)
    training = logged(trainer, "loss")
    assert sorted(training) == sorted({7, 14, 21, 28, 35} | {10, 20, 30, 40})
    assert set(logged(trainer, "mask_change")) == {20, 30, 40}
    for cycle in trainer.sparsity_report().cycles:
        entry = training[cycle.end_step]
        shares = {name: entry[name] for name in SHARES if name in entry}
        assert shares == {name: getattr(cycle, name) for name in SHARES if cycle.cycle > 1}
        assert (entry["sparsity"], entry["cycle"]) == (cycle.sparsity, cycle.cycle)
    with_shares = [entry for entry in trainer.state.log_history if SHARES & set(entry)]
    assert [entry["step"] for entry in with_shares] == [20, 30, 40]
    assert all("loss" in entry for entry in with_shares)


def test_shares_that_do_not_exist_are_left_out(run):
    config = PruningConfig(sparsity=0.8, method="gradual_restarts", num_cycles=2)
    last = logged(run("trainer", config), "loss")[40]
    assert SHARES & set(last) == {"recovered_share_at_end", "mask_change"}


def test_who_wants_no_logs_or_has_no_place_for_the_shares_gets_no_extra_entry(run, tiny_bert):
    assert not logged(run("trainer", args={"logging_strategy": "no"}), "loss")
    assert not logged(run("callback", args={"logging_steps": 100}), "loss")
    model = tiny_bert()
    prune_(model, PruningConfig(sparsity=0.8))
    held = run("trainer", PruningConfig(method="hold"), {"logging_steps": 100}, model=model)
    assert not logged(held, "loss")


def test_the_extra_entries_do_not_change_the_training(run):
    config = PruningConfig(sparsity=0.8, num_cycles=4)
    runs = [
        run("trainer", config, args=args)
        for args in ({"logging_strategy": "no"}, {"logging_steps": 100})
    ]
    assert [sorted(logged(trainer, "loss")) for trainer in runs] == [[], [10, 20, 30, 40]]
    plain, extra = (trainer.model.state_dict() for trainer in runs)
    for name, weight in plain.items():
        assert torch.equal(weight, extra[name]), name
    losses = [trainer.state.log_history[-1]["train_loss"] for trainer in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # summed in another order
