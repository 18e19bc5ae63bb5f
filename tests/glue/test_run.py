import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from hf_cyclprune.cli import main
from hf_cyclprune.glue.tasks import TASKS
from tests.hub.repos import add_tiny_bert, add_tiny_glue
from tests.hub.server import HubServer

TIMES = ("runtime", "per_second", "preparation_time")


def results(folder):
    """Read all_results.json without its timings."""
    values = json.loads((folder / "all_results.json").read_text())
    return {k: v for k, v in values.items() if not any(time in k for time in TIMES)}


def check_results(folder, name):
    task = TASKS[name]
    values = results(folder)
    suffixes = ("", "_mm") if name == "mnli" else ("",)
    for suffix in suffixes:
        for metric in task.metrics:
            assert -1 <= values[f"eval_{metric}{suffix}"] <= 1
        assert values[f"eval_samples{suffix}"] > 0
        assert values[f"eval_loss{suffix}"] > 0
    assert any(key.endswith("_mm") for key in values) == (name == "mnli")
    assert ("eval_combined_score" in values) == (len(task.metrics) > 1)
    assert values["train_loss"] > 0


@pytest.mark.parametrize("name", TASKS)
def test_every_task_runs_from_disk(name, flags, tmp_path):
    assert main(["glue", *flags(name, "--sparsity", 0.8, "--num_cycles", 2)]) == 0
    folder = tmp_path / "out"
    check_results(folder, name)
    config = json.loads((folder / "config.json").read_text())
    assert list(config["id2label"].values()) == list(TASKS[name].labels)
    weights = load_file(folder / "model.safetensors")
    targets = [w for n, w in weights.items() if ".layer." in n and w.ndim == 2]
    zeros = sum(int((w == 0).sum()) for w in targets)
    assert zeros / sum(w.numel() for w in targets) == results(folder)["sparsity"]
    assert results(folder)["sparsity"] == pytest.approx(0.8, abs=1e-3)
    assert json.loads((folder / "pruning_config.json").read_text())["sparsity"] == 0.8
    report = json.loads((folder / "sparsity_report.json").read_text())
    assert [cycle["cycle"] for cycle in report["cycles"]] == [1, 2]


def test_a_run_writes_a_card_with_its_metrics_beside_those_of_a_dense_run(flags, tmp_path):
    dense, pruned = tmp_path / "dense", tmp_path / "pruned"
    assert main(["glue", *flags("sst2", "--output_dir", dense)]) == 0
    more = ("--output_dir", pruned, "--pattern", "2:4", "--num_cycles", 2, "--dense_run", dense)
    assert main(["glue", *flags("sst2", *more)]) == 0
    card = (pruned / "README.md").read_text()
    (result,) = ModelCard(card).data.eval_results[:1]
    measured = results(pruned)["eval_accuracy"]
    assert (result.dataset_type, result.dataset_config) == ("nyu-mll/glue", "sst2")
    assert (result.dataset_split, result.metric_value) == ("validation", measured)
    wanted = f"| accuracy | {results(dense)['eval_accuracy']:.4f} | {measured:.4f} |"
    assert wanted in card
    assert "2:4" in ModelCard(card).data.tags
    assert "2:4" not in (dense / "README.md").read_text()


@pytest.mark.parametrize(("kind", "problem"), [("missing", "has no"), ("pruned", "is pruned")])
def test_a_dense_run_that_is_none_is_refused_before_training(
    kind, problem, flags, tmp_path, capsys
):
    other = tmp_path / "other"
    if kind == "pruned":
        other.mkdir()
        (other / "all_results.json").write_text('{"sparsity": 0.8, "eval_accuracy": 0.5}')
    assert main(["glue", *flags("sst2", "--sparsity", 0.8, "--dense_run", other)]) == 1
    assert f"The dense_run '{other}' {problem}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


HUB = """
import sys
from hf_cyclprune.cli import main
from hf_cyclprune.glue.tasks import TASKS
for name in TASKS:
    flags = ["--task_name", name, "--model_name_or_path", "google-bert/bert-base-uncased"]
    flags += ["--output_dir", f"{sys.argv[1]}/{name}", "--max_steps", "2"]
    flags += ["--do_train", "--do_eval", "--do_predict", "--pattern", "2:4"]
    flags += ["--num_cycles", "1", "--report_to", "none"]
    assert main(["glue", *flags, "--max_seq_length", "32", "--save_strategy", "no"]) == 0, name
"""


def test_every_task_runs_with_the_names_of_the_hub(tmp_path):
    with HubServer() as hub:
        add_tiny_bert(hub)
        add_tiny_glue(hub, num_rows=8)
        environment = {**os.environ, **hub.environment(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", HUB, str(tmp_path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, task in TASKS.items():
        check_results(tmp_path / name, name)
        assert results(tmp_path / name)["sparsity"] == 0.5
        files = sorted(path.name for path in (tmp_path / name).glob("predict_results_*"))
        matched = [f"predict_results_{name}.txt"]
        assert files == (["predict_results_mnli-mm.txt", *matched] if name == "mnli" else matched)
        head, *rows = (tmp_path / name / matched[0]).read_text().splitlines()
        assert head == "index\tprediction"
        values = [row.split("\t")[1] for row in rows]
        assert len(values) == 8
        if task.is_regression:
            assert all(isinstance(float(value), float) for value in values)
        else:
            assert set(values) <= set(task.labels)


def test_without_sparsity_the_run_is_dense(flags, tmp_path):
    assert main(["glue", *flags("sst2")]) == 0
    assert results(tmp_path / "out")["sparsity"] == 0
    assert not (tmp_path / "out" / "pruning_config.json").exists()


def test_a_config_file_does_the_same(flags, tmp_path):
    given = flags("sst2")[:-1]
    values = {name[2:]: value for name, value in zip(given[::2], given[1::2], strict=True)}
    (tmp_path / "run.json").write_text(json.dumps({**values, "sparsity": 0.5, "num_cycles": 1}))
    assert main(["glue", str(tmp_path / "run.json")]) == 0
    assert results(tmp_path / "out")["sparsity"] == pytest.approx(0.5, abs=1e-3)


def test_a_finished_model_is_evaluated_again_with_the_same_result(flags, tmp_path):
    assert main(["glue", *flags("mrpc", "--sparsity", 0.8, "--num_cycles", 1)]) == 0
    trained = results(tmp_path / "out")
    again = flags("mrpc", "--output_dir", tmp_path / "again", "--do_eval", model=tmp_path / "out")
    assert main(["glue", *again]) == 0
    evaluated = results(tmp_path / "again")
    for key in ("eval_loss", "eval_accuracy", "eval_f1", "eval_samples", "sparsity"):
        assert evaluated[key] == trained[key], key
    assert "train_loss" not in evaluated


def turn(source, target, labels):
    """Save the same model with its two labels, and the rows of its head, in reverse order."""
    model = AutoModelForSequenceClassification.from_pretrained(source)
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.copy_(parameter.flip(0))
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: i for i, label in enumerate(labels)}
    model.save_pretrained(target)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (target / file).write_bytes((source / file).read_bytes())


def test_a_models_own_label_order_is_kept(flags, tmp_path):
    assert main(["glue", *flags("rte", "--seed", 3)]) == 0
    turn(tmp_path / "out", tmp_path / "turned", ["not_entailment", "entailment"])
    again = flags("rte", "--output_dir", tmp_path / "b", "--do_eval", model=tmp_path / "turned")
    assert main(["glue", *again]) == 0
    ours, theirs = results(tmp_path / "b"), results(tmp_path / "out")
    assert ours["eval_loss"] == pytest.approx(theirs["eval_loss"], rel=1e-5)
    assert ours["eval_accuracy"] == theirs["eval_accuracy"]


def test_f1_is_that_of_the_task_whatever_the_models_order(flags, tmp_path):
    assert main(["glue", *flags("mrpc", "--seed", 3)]) == 0
    turn(tmp_path / "out", tmp_path / "turned", ["equivalent", "not_equivalent"])
    again = flags("mrpc", "--output_dir", tmp_path / "b", "--do_eval", model=tmp_path / "turned")
    assert main(["glue", *again]) == 0
    assert results(tmp_path / "out")["eval_f1"] > 0
    for metric in ("accuracy", "f1", "combined_score"):
        key = f"eval_{metric}"
        assert results(tmp_path / "b")[key] == results(tmp_path / "out")[key]


def test_dense_and_pruned_runs_have_the_same_loss_with_accumulation(flags, tmp_path):
    """transformers 5 multiplies the loss of BERT's head by the number of steps."""
    losses = []
    rate = ("--learning_rate", "1e-9", "--gradient_accumulation_steps", 3)
    for number, more in enumerate(((), ("--sparsity", "0.0", "--num_cycles", 1))):
        folder = tmp_path / str(number)
        assert main(["glue", *flags("sst2", *rate, *more, "--output_dir", folder)]) == 0
        losses.append(results(folder)["train_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0] == pytest.approx(0.693, abs=0.05)


def test_a_diverged_run_does_not_look_good(flags, tmp_path):
    assert main(["glue", *flags("sst2", "--learning_rate", "1e30")]) == 0
    loss = results(tmp_path / "out")["train_loss"]
    assert math.isnan(loss) or loss > 0.5


def test_limits_pad_and_cache(flags, tmp_path):
    more = ("--max_train_samples", 8, "--max_eval_samples", 5, "--pad_to_max_length")
    assert main(["glue", *flags("cola", *more)]) == 0
    values = results(tmp_path / "out")
    assert (values["train_samples"], values["eval_samples"]) == (8, 5)


RESUMED = ("--max_steps", 40, "--save_steps", 16, "--save_total_limit", 1, "--sparsity", 0.8)
KILLED = """
import os, signal, sys
from transformers import Trainer, TrainerCallback
from hf_cyclprune.cli import main

class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 21:
            os.kill(os.getpid(), signal.SIGKILL)

begin = Trainer.train
def train(self, *args, **kwargs):
    self.add_callback(Kill())
    return begin(self, *args, **kwargs)

Trainer.train = train
main(["glue", *sys.argv[1:]])
"""


def test_a_killed_run_goes_on_to_the_same_results(flags, tmp_path):
    """The run is killed after its first checkpoint; the same command then ends it."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(["glue", *flags("stsb", *RESUMED, "--output_dir", whole)]) == 0
    argv = flags("stsb", *RESUMED, "--output_dir", killed, "--resume_from_checkpoint", "True")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, *argv]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (killed / "checkpoint-16" / "trainer_state.json").is_file()
    assert not (killed / "all_results.json").exists(), "it was stopped in the middle"
    assert main(["glue", *argv]) == 0
    assert results(killed) == results(whole)
    for name, weight in load_file(whole / "model.safetensors").items():
        assert torch.equal(load_file(killed / "model.safetensors")[name], weight), name


def test_what_a_kill_left_does_not_push_a_good_checkpoint_out(flags, tmp_path):
    """The interrupted checkpoint has the highest number, so save_total_limit 1 would keep it."""
    argv = flags("sst2", "--save_total_limit", 1, "--resume_from_checkpoint", "True")
    assert main(["glue", *argv]) == 0
    (tmp_path / "out" / "checkpoint-99").mkdir()
    more = ("--max_steps", 18, "--save_steps", 9)
    with pytest.warns(UserWarning, match="checkpoint-99 is not resumed from"):
        assert main(["glue", *argv, *map(str, more)]) == 0
    assert [p.name for p in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-18"]


@pytest.fixture
def refused(capsys):
    """Assert that a command is refused with one line on stderr, and return the line."""

    def run(argv):
        assert main(["glue", *argv]) == 1
        lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert len(lines) == 1
        assert lines[0].startswith("hf-cyclprune: error: ")
        return lines[0]

    return run


def test_bad_input_is_one_sentence_and_nothing_is_written(flags, refused, tmp_path, tiny_folder):
    assert "must be one of cola" in refused(flags("sst5"))
    assert "must hold sst2/train.parquet" in refused(flags("sst2", "--dataset_dir", tmp_path))
    assert "where no config.json is found" in refused(flags("sst2", model="/nosuch"))
    assert "name of one on the Hub; got 'some/model'" in refused(flags("sst2", model="some/model"))
    assert "fp16 needs an accelerator" in refused(flags("sst2", "--fp16"))
    best = ("--load_best_model_at_end", "--eval_strategy", "epoch", "--save_strategy", "epoch")
    line = refused(flags("sst2", *best, "--metric_for_best_model", "f1"))
    assert "metric_for_best_model must be one of accuracy, loss; got 'f1'" in line
    assert "--tf32 requires" in refused(flags("sst2", "--tf32", "true"))
    assert "sparsity and pattern need do_train" in refused(
        flags("sst2", "--sparsity", 0.5, "--do_eval")
    )
    assert "One of do_train, do_eval and do_predict must be True" in refused(
        flags("sst2", "--do_train", "False")
    )
    assert not (tmp_path / "out").exists()


def test_predictions_need_a_test_set(flags, refused, tmp_path, glue_folder):
    folder = tmp_path / "data" / "sst2"
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        file = f"{split}.parquet"
        (folder / file).write_bytes((glue_folder / "sst2" / file).read_bytes())
    line = refused(flags("sst2", "--do_predict", "--dataset_dir", tmp_path / "data"))
    assert "dataset_dir must hold sst2/test.parquet" in line


def test_an_output_dir_that_holds_another_run_is_left_alone(flags, refused, tmp_path):
    assert main(["glue", *flags("sst2", "--max_steps", 2)]) == 0
    before = {path: path.stat().st_mtime_ns for path in Path(tmp_path / "out").rglob("*")}
    assert "output_dir must be new or empty" in refused(flags("sst2"))
    line = refused(flags("rte", "--resume_from_checkpoint", "True"))
    assert "task_name must be 'sst2' to resume" in line
    assert before == {path: path.stat().st_mtime_ns for path in Path(tmp_path / "out").rglob("*")}
