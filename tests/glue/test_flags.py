import dataclasses
import json

import pytest

pytest.importorskip("datasets", reason="the extra glue is not installed")

from hf_cyclprune.config import PruningConfig
from hf_cyclprune.glue import flags
from hf_cyclprune.glue.arguments import GlueArguments
from hf_cyclprune.glue.flags import parse_flags
from hf_cyclprune.training.arguments import PruningArguments

NAMES = ["--task_name", "sst2", "--model_name_or_path", "somewhere"]


@pytest.fixture(autouse=True)
def _no_accelerator(monkeypatch):
    monkeypatch.setattr(flags, "has_accelerator", lambda: False)


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "run.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_flags_of_all_three_kinds_arrive():
    glue, args = parse_flags([*NAMES, "--sparsity", "0.9", "--num_cycles=2", "--seed", "7"])
    assert (glue.task_name, glue.model_name_or_path, glue.max_seq_length) == (
        "sst2",
        "somewhere",
        128,
    )
    assert (args.sparsity, args.num_cycles, args.seed) == (0.9, 2, 7)


def test_help_shows_the_flags_of_pruning_before_those_of_transformers(capsys):
    with pytest.raises(SystemExit):
        parse_flags(["--help"])
    shown = capsys.readouterr().out
    order = ["--task_name", "pruning:", "--sparsity", "--fix_loss_scaling", "training:"]
    places = [shown.index(text, shown.index("task and model:")) for text in order]
    assert places == sorted(places)
    last = shown.index("training:")
    assert places[-1] < shown.index("--learning_rate") < shown.index("--hub_token")
    pruning = shown[places[1] : last]
    assert all(f"--{f.name} " in pruning for f in dataclasses.fields(PruningConfig))
    assert "--seed" not in pruning
    names = {f.name for cls in (GlueArguments, PruningArguments) for f in dataclasses.fields(cls)}
    assert all(shown.count(f"\n  --{name} ") == 1 for name in names if f"--{name}" in shown)


def test_without_sparsity_or_pattern_the_run_is_dense():
    assert parse_flags(NAMES)[1].pruning_config() is None
    assert parse_flags([*NAMES, "--pattern", "2:4"])[1].pruning_config().target_sparsity == 0.5


def test_it_trains_and_evaluates_unless_told_otherwise():
    def actions(*flags):
        args = parse_flags([*NAMES, *flags])[1]
        return args.do_train, args.do_eval, args.do_predict

    assert actions() == (True, True, False)
    assert actions("--do_train") == (True, False, False)
    assert actions("--do_eval") == (False, True, False)
    assert actions("--do_predict") == (False, False, True)
    assert actions("--do_train", "--eval_strategy", "epoch") == (True, True, False)
    assert actions("--eval_strategy", "epoch") == (True, True, False)


def test_the_cpu_is_chosen_where_there_is_nothing_else(monkeypatch):
    assert parse_flags([*NAMES, "--bf16"])[1].use_cpu
    monkeypatch.setattr(flags, "has_accelerator", lambda: True)
    assert not parse_flags(NAMES)[1].use_cpu


def test_the_best_model_is_chosen_by_the_metric_of_the_task():
    best = ["--load_best_model_at_end", "--eval_strategy", "steps", "--save_strategy", "steps"]
    mrpc = ["--task_name", "mrpc", "--model_name_or_path", "somewhere"]
    args = parse_flags([*mrpc, *best])[1]
    assert (args.metric_for_best_model, args.greater_is_better) == ("combined_score", True)
    args = parse_flags([*mrpc, *best, "--metric_for_best_model", "loss"])[1]
    assert (args.metric_for_best_model, args.greater_is_better) == ("loss", False)


FILE = {
    "task_name": "sst2",
    "model_name_or_path": "somewhere",
    "sparsity": 0.9,
    "lr_restarts": False,
    "targets": ["query", "key"],
    "lr_scheduler_type": "cosine",
    "lr_scheduler_kwargs": {"num_cycles": 1},
    "max_train_samples": None,
}


def test_a_json_file_is_the_same_as_flags(write):
    glue, args = parse_flags([write(json.dumps(FILE), "run.json")])
    assert (glue.task_name, args.sparsity, args.lr_restarts) == ("sst2", 0.9, False)
    assert args.targets == ["query", "key"]
    assert args.lr_scheduler_kwargs == {"num_cycles": 1}
    assert args.do_train


def test_numbers_in_a_yaml_file_may_have_an_exponent(write):
    text = "task_name: sst2\nmodel_name_or_path: somewhere\nlearning_rate: 3e-4\nbf16: true\n"
    args = parse_flags([write(text)])[1]
    assert args.learning_rate == 3e-4
    assert args.bf16


def test_what_looks_like_a_time_or_a_date_in_yaml_stays_a_string(write):
    text = "task_name: sst2\nmodel_name_or_path: somewhere\npattern: 2:4\noutput_dir: 2024-01-01\n"
    args = parse_flags([write(text)])[1]
    assert (args.pattern, args.output_dir) == ("2:4", "2024-01-01")


@pytest.mark.parametrize("name", ["run.yaml", "run.json"])
def test_numbers_inside_a_mapping_are_numbers(write, name):
    values = {**FILE, "gradient_checkpointing_kwargs": {"min_lr": 1e-06, "name": "x"}}
    args = parse_flags([write(json.dumps(values, indent=" "), name)])[1]
    assert args.gradient_checkpointing_kwargs == {"min_lr": 1e-06, "name": "x"}


def test_a_flag_overrides_the_file(write):
    args = parse_flags([write(json.dumps(FILE)), "--sparsity", "0.5", "--targets", "value"])[1]
    assert (args.sparsity, args.targets) == (0.5, ["value"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            [*NAMES, "--sparsety", "0.9"],
            "Unknown flag '--sparsety'. Did you mean --spars",
        ),
        ([*NAMES, "--num-cycle=2"], "Did you mean --num_cycles?"),
        ([*NAMES, "stray"], "Unknown flag 'stray'"),
        ([*NAMES, "-sparsity=0.8"], "Unknown flag '-sparsity=0.8'. Did you mean --sparsity?"),
        ([*NAMES, "-do_predict"], "Unknown flag '-do_predict'. Did you mean --do_predict?"),
        (["--task_name", "sst3", "--model_name_or_path", "x"], "task_name must be one of"),
        ([*NAMES, "--sparsity", "90"], "Write 0.9 for 90 %"),
        ([*NAMES, "--num_cycles", "2"], "num_cycles must come with sparsity"),
        ([*NAMES, "--max_train_samples", "0"], "max_train_samples must be an integer >= 1"),
        (
            ["missing.yaml"],
            "FILE must hold names and values as JSON or YAML; got 'missing.yaml': No",
        ),
        (["missing.json"], "got 'missing.json': No such file or directory. Name a file"),
        (["/"], "got '/': Is a directory. Name a file"),
        ([*NAMES, "--sparsity", "80%"], "sparsity must be a number; got '80%'. Write 0.8 for 80%."),
        ([*NAMES, "--sparsity=0,8"], "sparsity must be a number; got '0,8'. Write 0.8, with a po"),
        ([*NAMES, "--learning_rate", "fast"], "learning_rate must be a number; got 'fast'. Write"),
        ([*NAMES, "--num_cycles", "two"], "num_cycles must be an integer; got 'two'. Write it in"),
        ([*NAMES, "--num-cycles", "2.5"], "num_cycles must be an integer; got '2.5'. Write it in"),
        ([*NAMES, "--learning_rate", "-1e-3"], "learning_rate must be a number >= 0; got -0.001"),
        ([*NAMES, "--learning_rate=-.5"], "learning_rate must be a number >= 0; got -0.5"),
    ],
)
def test_what_is_wrong_is_named(argv, message):
    with pytest.raises((ValueError, OSError)) as caught:
        parse_flags(argv)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- sst2", "FILE must hold names and values"),
        ("a: [", "FILE must hold names and values"),
        ("a: [", "expected the node content"),
        ("? [a, b]\n: c", "Unknown flag '['a', 'b']'"),
        ("sparsity: 80%", "sparsity must be a number; got '80%'. Write 0.8 for 80%."),
        ("task: sst2", "Unknown flag 'task'. Did you mean --task_name?"),
        ("max_steps: null", "max_steps must be a single value; got null"),
        ("sparsity: .8\nseed: 1\nsparsity: .5", "'sparsity' is given twice"),
        ("seed: [1, 2]", 'seed must be a single value; got ["1", "2"]'),
    ],
)
def test_what_is_wrong_in_a_file_is_named(write, text, message):
    with pytest.raises(ValueError, match=r"must|Unknown") as caught:
        parse_flags([write(text)])
    assert message in str(caught.value)


def test_a_name_that_is_twice_in_a_json_file_is_refused(write):
    with pytest.raises(ValueError, match=r"run\.json.*'seed' is given twice"):
        parse_flags([write('{"seed": 1, "seed": 2}', "run.json")])


def test_a_path_may_begin_with_the_home_folder(write, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    lines = ["task_name: sst2", "model_name_or_path: ~/bert", "dense_run: ~/dense"]
    glue, args = parse_flags(
        [write("\n".join(lines)), "--teacher=~/t", "--resume_from_checkpoint=~/c", "--sparsity=.8"]
    )
    assert glue.model_name_or_path == "/home/me/bert"
    assert (glue.dense_run, args.teacher) == ("/home/me/dense", "/home/me/t")
    assert args.resume_from_checkpoint == "/home/me/c"


def test_the_loss_of_a_dense_run_may_be_left_as_it_is():
    assert not parse_flags([*NAMES, "--fix_loss_scaling", "False"])[1].fix_loss_scaling


def test_a_file_in_another_encoding_is_refused_with_the_reason(tmp_path):
    for name in ("run.yaml", "run.json"):
        (tmp_path / name).write_bytes('{"task_name": "sst2ä"}'.encode("latin-1"))
        with pytest.raises(ValueError, match=r"FILE must .*'utf-8' codec can't decode .* Name a"):
            parse_flags([str(tmp_path / name)])


@pytest.mark.parametrize("argv", [[], ["--task_name", "sst2"], [*NAMES, "--num_cycles"]])
def test_a_missing_value_ends_with_usage_in_short(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_flags(argv)
    assert caught.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) < 6


def test_help_lists_every_kind_of_flag(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_flags(["--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    for name in (
        "--task_name",
        "--sparsity",
        "--num_cycles",
        "--learning_rate",
        "--no_fix_loss_scaling",
    ):
        assert name in printed


def test_a_method_brings_its_training_arguments_and_a_flag_goes_before_them():
    flags = [*NAMES, "--method", "pgd", "--sparsity", "0.5"]
    assert parse_flags(flags)[1].lr_scheduler_type == "constant"
    assert parse_flags([*flags, "--lr_scheduler_type", "cosine"])[1].lr_scheduler_type == "cosine"
    one_cycle = parse_flags([*NAMES, "--method", "one_cycle", "--sparsity", "0.5"])[1]
    assert (one_cycle.lr_scheduler_type, one_cycle.warmup_steps) == ("cosine", 0.25)


def test_an_unknown_method_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"method must be one of .*'gradul'.*mean 'gradual'"):
        parse_flags([*NAMES, "--method", "gradul", "--sparsity", "0.5"])
