"""Flags that do not exist: what is suggested in their place, and what never is."""

import dataclasses
import re

import pytest

pytest.importorskip("datasets", reason="the extra glue is not installed")

from transformers import TrainingArguments

from hf_cyclprune.glue.flags import parse_flags
from hf_cyclprune.glue.unknown import OLD_FLAGS

NAMES = ["--task_name", "sst2", "--model_name_or_path", "somewhere"]
TRAINING = {field.name for field in dataclasses.fields(TrainingArguments)}


def refuse(*argv):
    with pytest.raises(ValueError, match="Unknown flag") as caught:
        parse_flags([*argv])
    return str(caught.value)


@pytest.mark.skipif("warmup_ratio" in TRAINING, reason="this transformers has warmup_ratio")
@pytest.mark.parametrize("given", [["--warmup_ratio", "0.06"], ["--warmup-ratio=0.06"]])
def test_a_warmup_ratio_is_answered_with_the_same_share_of_warmup_steps(given, tmp_path):
    line = refuse(*NAMES, *given, "--seed", "3")
    assert "Write --warmup_steps 0.06," in line
    assert "ramp" not in line
    args = parse_flags([*NAMES, "--warmup_steps", "0.06"])[1]
    assert args.get_warmup_steps(100) == 6
    (tmp_path / "run.yaml").write_text("task_name: sst2\nwarmup_ratio: 0.06\n")
    assert "Write --warmup_steps 0.06," in refuse(str(tmp_path / "run.yaml"))
    (tmp_path / "run.json").write_text('{"warmup_ratio": 0.06}')
    assert "Write --warmup_steps 0.06," in refuse(str(tmp_path / "run.json"))


@pytest.mark.parametrize(
    ("flag", "answer"),
    [
        ("--evaluation_strategy epoch", "Write --eval_strategy epoch."),
        ("--no_cuda", "Write --use_cpu."),
        ("--per_gpu_train_batch_size 8", "Write --per_device_train_batch_size 8."),
        ("--overwrite_output_dir", "Name a new output_dir, or go on"),
        ("--save_safetensors False", "Leave it out: weights are always saved as safetensors."),
        ("--fp16_backend amp", "Leave it out: --fp16"),
        ("--adafactor", "Write --optim adafactor."),
        ("--use_auth_token hf_abcdefghij", "Run `hf auth login`, or set HF_TOKEN."),
        ("--push_to_hub_token secret", "Run `hf auth login`, or set HF_TOKEN."),
        ("--train_file a.csv", "--dataset_dir"),
        ("--ray_scope last", "Leave it out: it is no longer needed, or does not exist."),
    ],
)
def test_what_recipes_of_older_versions_say_is_answered_with_what_to_write(flag, answer):
    line = refuse(*NAMES, *flag.split())
    assert answer in line
    assert "hf_abcdefghij" not in line
    assert "secret" not in line


def test_a_slip_in_an_old_name_is_answered_too():
    assert "Write --eval_strategy epoch." in refuse(*NAMES, "--evalution_strategy", "epoch")
    if "warmup_ratio" not in TRAINING:
        assert "Write --warmup_steps 0.1," in refuse(*NAMES, "--wramup_ratio", "0.1")


def test_every_answer_names_flags_that_exist_where_the_old_one_does_not():
    known = {field.name for cls in parse_flags(NAMES) for field in dataclasses.fields(cls)}
    for old, answer in OLD_FLAGS.items():
        for name in re.findall(r"--(\w+)", answer) if old not in TRAINING else ():
            assert name in known, old


def test_a_flag_that_transformers_has_is_never_answered():
    for old in OLD_FLAGS.keys() & TRAINING:
        if old == "warmup_ratio":
            assert parse_flags([*NAMES, "--warmup_ratio", "0.1"])[1].warmup_steps == 0.1


@pytest.mark.parametrize(
    ("flag", "near"),
    [
        ("--sparsty", "sparsity"),
        ("--sparcity", "sparsity"),
        ("--num_cycels", "num_cycles"),
        ("--teacher_temprature", "teacher_temperature"),
        ("--learning_rat", "learning_rate"),
        ("-sparsity", "sparsity"),
        ("--warmup_step", "warmup_steps"),
        ("--max_length", "max_seq_length"),
    ],
)
def test_a_slip_of_the_pen_is_answered_with_the_nearest_name(flag, near):
    assert f"Did you mean --{near}?" in refuse(*NAMES, flag, "1")


OURS = ("ramp_ratio", "scope", "num_cycles", "rise_ratio", "levels", "targets", "teacher")


@pytest.mark.parametrize(
    "flag",
    ["--warmup_rate", "--wramup_ratio", "--cpu_num_cores", "--my_scope", "--label", "--teach"],
)
def test_another_word_is_never_answered_with_an_option_of_pruning(flag):
    """It may be meant for the training, and the run would be pruned in another way."""
    line = refuse(*NAMES, flag, "1")
    assert not [name for name in OURS if f"--{name}?" in line]
