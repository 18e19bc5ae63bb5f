import pytest
from transformers import HfArgumentParser, TrainingArguments

from hf_cyclprune import PruningArguments, PruningConfig
from hf_cyclprune.config import config_to_dict, field_names


def test_every_pruning_option_is_a_field_and_none_shadows_a_training_argument():
    training_fields = set(TrainingArguments.__dataclass_fields__)
    assert not training_fields & set(field_names())
    assert set(field_names()) <= set(PruningArguments.__dataclass_fields__)


def test_flags_are_parsed_into_the_config(tmp_path):
    flags = (
        f"--output_dir {tmp_path} --sparsity 0.9 --num_cycles 3 --scope global --ramp linear "
        "--targets query key --lr_restarts False --learning-rate 1e-4"
    )
    (args,) = HfArgumentParser(PruningArguments).parse_args_into_dataclasses(flags.split())
    config = args.pruning_config()
    assert config == PruningConfig(
        sparsity=0.9,
        num_cycles=3,
        scope="global",
        ramp="linear",
        targets=["query", "key"],
        lr_restarts=False,
    )
    assert args.learning_rate == 1e-4


def test_the_help_of_every_flag_can_be_printed(capsys):
    with pytest.raises(SystemExit):
        HfArgumentParser(PruningArguments).parse_args(["--help"])
    assert "--reset_ratio" in capsys.readouterr().out


def test_nm_needs_no_sparsity(tmp_path):
    args = PruningArguments(output_dir=str(tmp_path), pattern="2:4")
    assert args.pruning_config().target_sparsity == 0.5


def test_without_sparsity_and_pattern_nothing_is_pruned(tmp_path):
    assert PruningArguments(output_dir=str(tmp_path)).pruning_config() is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_cycles": 3}, ["num_cycles must come with sparsity", "3", "sparsity=0.9"]),
        ({"sparsity": 90}, ["sparsity must be a fraction in [0, 1)", "90", "0.9"]),
        ({"sparsity": 0.9, "ramp": "cubik"}, ["ramp must be one of", "cubik", "'cubic'"]),
    ],
)
def test_bad_options_are_refused_on_construction(tmp_path, options, words):
    with pytest.raises(ValueError, match=r"\.") as error:
        PruningArguments(output_dir=str(tmp_path), **options)
    assert all(word in str(error.value) for word in words)


def test_the_training_arguments_serialise_with_the_options(tmp_path):
    args = PruningArguments(output_dir=str(tmp_path), sparsity=0.5)
    values = args.to_dict()
    assert values["sparsity"] == 0.5
    assert values["output_dir"] == str(tmp_path)
    assert '"sparsity": 0.5' in args.to_json_string()
    assert config_to_dict(args) == config_to_dict(PruningConfig(sparsity=0.5))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_cycles": 4, "max_steps": 3}, "num_cycles must not exceed"),
        ({"lr_scheduler_type": "cosine_with_restarts"}, "lr_scheduler_type must be"),
        ({"max_steps": 40, "warmup_steps": 9}, "warmup_steps must not outlast"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, 'kwargs=.{"num_decay_steps": 100}'),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "fit lr_scheduler_type 'cosine_with_min_lr'"),
        ({"lr_scheduler_kwargs": {"pover": 2.0}}, "lr_scheduler_kwargs must fit .*'pover'"),
        ({"learning_rate": -1e-3}, "learning_rate must be a number >= 0; got -0.001. Pass "),
    ],
)
def test_what_the_arguments_alone_show_is_refused_before_there_is_a_model(
    arguments, options, words
):
    with pytest.raises(ValueError, match=words):
        PruningArguments(**arguments(method="cyclical", sparsity=0.5, **options))
